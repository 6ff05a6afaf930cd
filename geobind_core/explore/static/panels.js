// What was found, and what is at a place.

import { shadeOf } from "./colours.js";
import { coordinates, el, named, number, picture, playButton, player, score } from "./elements.js";

const first = (hit, kind, preferred) =>
  hit.observations.find((o) => o.kind === kind && o.modality === preferred) || hit.observations.find((o) => o.kind === kind);

// told: {onOpen(hit), onHover(row | null)}
export function hitItem(hit, gallery, limits, told) {
  const image = first(hit, "image", gallery);
  const text = first(hit, "text", gallery);
  const sound = first(hit, "audio", gallery);
  const value = el("span", { class: "score", title: "cosine similarity" }, score(hit.score));
  value.style.setProperty("--shade", shadeOf(hit.score, limits));
  return el(
    "li",
    { onmouseenter: () => told.onHover(hit.row), onmouseleave: () => told.onHover(null) },
    el(
      "button",
      { class: "open", type: "button", onclick: () => told.onOpen(hit), onfocus: () => told.onHover(hit.row) },
      image ? picture(image.url, named(image.modality), { class: "thumb" }) : null,
      el(
        "span",
        { class: "about" },
        el("span", { class: "top" }, el("span", { class: "key" }, hit.key), value),
        el("span", { class: "coordinates" }, coordinates(hit.longitude, hit.latitude)),
        text ? el("span", { class: "words" }, text.text) : null,
      ),
    ),
    sound ? playButton(sound.url, `${named(sound.modality)} of ${hit.key}`) : null,
  );
}

export function observed(place) {
  if (!place.observations.length) return el("p", { class: "note" }, "Nothing that can be shown was observed here.");
  const order = ["image", "audio", "text"];
  const sorted = place.observations.toSorted((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind));
  return el(
    "div",
    { class: "observed" },
    ...sorted.map((o) =>
      el(
        "figure",
        { class: o.kind === "image" ? null : "wide" },
        el("figcaption", {}, named(o.modality)),
        o.kind === "image" ? picture(o.url, `${named(o.modality)} of ${place.key}`) : null,
        o.kind === "audio" ? player(o.url, `${named(o.modality)} of ${place.key}`) : null,
        o.kind === "text" ? el("blockquote", {}, o.text) : null,
      ),
    ),
  );
}

// told: {onOpen(hit)}
export function expected(answer, several, told) {
  // What it is known by comes last: of that, one knows what is there.
  const by = answer.parts[0].modality;
  const found = answer.expected.filter((gallery) => gallery.items.length);
  found.sort((a, b) => (a.modality === by) - (b.modality === by));
  return el("div", { class: "expected" }, ...found.map((gallery) => one(gallery, several, told)));
}

function one(gallery, several, told) {
  const title = named(gallery.modality) + (several ? ` of collection ${gallery.collection + 1}` : "");
  const own = gallery.own
    ? el("p", { class: "note" }, `What was observed here comes ${ordinal(gallery.own.rank)} of ${number(gallery.of)}, with ${score(gallery.own.score)}.`)
    : null;
  return el("section", {}, el("h3", {}, title), items(gallery, told), own);
}

function items(gallery, told) {
  const shown = (hit) => hit.observations[0];
  const open = (hit, content) =>
    el("button", { type: "button", title: `${hit.key}: look at this place`, onclick: () => told.onOpen(hit) }, ...content);
  if (gallery.kind === "image") {
    return el(
      "div",
      { class: "strip" },
      ...gallery.items.map((hit) =>
        open(hit, [
          shown(hit) ? picture(shown(hit).url, `${named(gallery.modality)} of ${hit.key}`) : hit.key,
          el("span", { class: "note" }, score(hit.score)),
        ]),
      ),
    );
  }
  return el(
    "div",
    { class: "rows" },
    ...gallery.items.map((hit) =>
      gallery.kind === "audio" && shown(hit)
        ? el("div", {}, player(shown(hit).url, `${named(gallery.modality)} of ${hit.key}`), open(hit, [score(hit.score)]))
        : el("div", {}, open(hit, [el("span", { class: "said" }, shown(hit)?.text ?? hit.key)]), el("span", { class: "note" }, score(hit.score))),
    ),
  );
}

function ordinal(rank) {
  const end = rank % 100 >= 11 && rank % 100 <= 13 ? "th" : ({ 1: "st", 2: "nd", 3: "rd" }[rank % 10] ?? "th");
  return `${number(rank)}${end}`;
}
