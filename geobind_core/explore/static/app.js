// The page: a query of parts, its answer on the map and in the list, and a place that is looked at.

import * as api from "./api.js";
import { drawHistogram, limitsOf } from "./colours.js";
import { byId, coordinates, el, named, number, score } from "./elements.js";
import { WorldMap } from "./map.js";
import { expected, hitItem, observed } from "./panels.js";
import { Recorder, canRecord } from "./recorder.js";

const HITS = 20;
const PREPARING = 1500; // milliseconds from one question how far it is to the next
const A_PLACE = /^\s*([+-]?\d+(?:\.\d+)?)\s*[,;\s]\s*([+-]?\d+(?:\.\d+)?)\s*$/;

const state = {
  space: null,
  collection: 0,
  gallery: null,
  parts: [], // {text | file | place | coordinates, modality, weight, label}
  answer: null,
  limits: null,
  opened: null, // {parts, hit | null}
};
let asking = null;
let looking = null;
let recorder = null;
let map = null;

// ---- the query

function given(part) {
  const { file, label, ...rest } = part;
  return rest;
}

function wanted(parts) {
  const files = parts.filter((part) => part.file).map((part) => part.file);
  let place = 0;
  const written = parts.map((part) => (part.file ? { ...given(part), file: place++ } : given(part)));
  return [{ parts: written, collection: state.collection, gallery: state.gallery, k: HITS, ...view() }, files];
}

function view() {
  return byId("inview").checked && hasPlaces() ? { bbox: map.bounds } : {};
}

function hasPlaces() {
  return state.space.collections[state.collection].has_places;
}

// A new part replaces the query; or is one more, where that is ticked.
function withPart(part) {
  if (!byId("add")?.checked) return [part];
  return [...state.parts.filter((other) => !(part.text && other.text)), part];
}

async function ask(parts) {
  asking?.abort();
  asking = new AbortController();
  const before = state.parts;
  state.parts = parts;
  showParts();
  if (!parts.length) return forget();
  tell("");
  byId("status").textContent = "Searching…";
  const started = performance.now();
  try {
    const answer = await api.query(...wanted(parts), asking.signal);
    showAnswer(answer, (performance.now() - started) / 1000);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof api.Refused)) throw error;
    // What cannot be read is no part of the query; what somebody has to choose of stays.
    if (!error.choices.length) state.parts = before;
    showParts();
    summarise();
    refuse(error, parts);
  }
}

function refuse(error, parts) {
  const buttons = error.choices.map((choice) =>
    el("button", { type: "button", onclick: () => ask([...parts.slice(0, -1), { ...parts.at(-1), modality: choice }]) }, named(choice)),
  );
  tell(error.message, error.hint, ...buttons);
}

function tell(text, hint = "", ...buttons) {
  const message = byId("message");
  message.hidden = !text;
  message.replaceChildren(text, hint ? ` ${hint}` : "", ...(buttons.length ? [el("br"), ...buttons] : []));
}

function forget() {
  state.answer = state.limits = null;
  map.setScores(null, null);
  map.mark({ ringed: [] });
  byId("hits").replaceChildren();
  byId("legend").hidden = true;
  byId("csv").disabled = byId("geojson").disabled = true;
  tell("");
  summarise();
}

function summarise() {
  const { answer } = state;
  const rows = state.space.collections[state.collection].rows;
  byId("list").hidden = !answer;
  byId("status").textContent = answer
    ? `${number(answer.compared)} places compared, similarity ${score(answer.range[0])} to ${score(answer.range[1])}, ${answer.took.toFixed(2)} s.`
    : `${number(rows)} places. Type a text${canRecord && state.space.reads.files.length ? ", record a sound" : ""}${state.space.reads.files.length ? ", drop a file" : ""}, or click a place.`;
}

// ---- what the query looks like

function showParts() {
  const list = byId("parts");
  const several = state.parts.length > 1;
  const items = state.parts.map((part) => {
    const weight = el("output", {}, part.weight.toFixed(1));
    const slider = el("input", {
      type: "range", min: -1, max: 1, step: 0.1, value: part.weight, "aria-label": `Weight of ${part.label}`,
      oninput: (event) => {
        weight.textContent = Number(event.target.value).toFixed(1);
      },
      onchange: (event) => {
        const value = Number(event.target.value) || 0.1;
        ask(state.parts.map((other) => (other === part ? { ...part, weight: value } : other)));
      },
    });
    return el(
      "li",
      {},
      el("span", { class: "what", title: part.label }, part.label),
      part.modality ? el("small", {}, named(part.modality)) : null,
      several ? slider : null,
      several ? weight : null,
      el("button", { type: "button", class: "plain", "aria-label": `Take ${part.label} out`, onclick: () => remove(part) }, "✕"),
    );
  });
  const ticked = byId("add")?.checked ?? false;
  const add = el("li", {}, el("label", {}, el("input", { id: "add", type: "checkbox", checked: ticked }), " add the next to this"));
  list.replaceChildren(...items, ...(items.length ? [add] : []));
  list.hidden = !items.length;
  byId("hints").hidden = items.length > 0;
}

function remove(part) {
  if (part.text) byId("text").value = "";
  ask(state.parts.filter((other) => other !== part));
}

// ---- the answer

function showAnswer(answer, took) {
  state.answer = { ...answer, took };
  state.parts = state.parts.map((part, i) => ({ ...part, modality: answer.parts[i].modality }));
  state.limits = limitsOf(answer.scores);
  showParts();
  map.setScores(answer.scores, state.limits);
  map.mark({ ringed: answer.hits.filter((hit) => hit.longitude !== null).map((hit) => hit.row) });
  byId("hits").replaceChildren(
    ...answer.hits.map((hit) =>
      hitItem(hit, answer.gallery, state.limits, { onOpen: openHit, onHover: (row) => map.mark({ hovered: row }) }),
    ),
  );
  byId("list-title").textContent = `Nearest places, by ${named(answer.gallery)}`;
  showLegend();
  byId("csv").disabled = byId("geojson").disabled = false;
  summarise();
}

function showLegend() {
  byId("legend").hidden = !state.answer || !hasPlaces();
  if (byId("legend").hidden) return;
  const ink = getComputedStyle(document.body).getPropertyValue("--rest");
  drawHistogram(byId("histogram"), state.answer.scores, state.limits, ink);
  byId("low").textContent = score(state.limits.least);
  byId("high").textContent = score(state.limits.greatest);
  showCells();
}

function showCells() {
  byId("what").textContent = map.gridded ? "similarity, mean of cells" : "similarity";
}

async function save(format) {
  try {
    const content = await api.download(...wanted(state.parts), format);
    const link = el("a", { href: URL.createObjectURL(content), download: `${state.space.name}.${format}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  } catch (error) {
    if (!(error instanceof api.Refused)) throw error;
    tell(error.message, error.hint);
  }
}

// ---- a place

function openHit(hit) {
  open(hit.collection, hit.row);
}

async function open(collection, row) {
  looking?.abort();
  looking = new AbortController();
  const parts = [{ place: [collection, row], weight: 1 }];
  if (collection === state.collection && hasPlaces()) {
    map.mark({ selected: row, point: null });
    map.reveal(row);
  }
  try {
    const place = await api.fetchRow(collection, row, looking.signal);
    state.opened = { parts, place };
    showPlace();
    await showExpected();
  } catch (error) {
    failed(error);
  }
}

async function openPoint(longitude, latitude) {
  looking?.abort();
  looking = new AbortController();
  const parts = [{ coordinates: [longitude, latitude], weight: 1, label: coordinates(longitude, latitude) }];
  map.mark({ selected: null, point: [longitude, latitude] });
  state.opened = { parts, place: null };
  showPlace();
  try {
    await showExpected();
  } catch (error) {
    failed(error);
  }
  ask(withPart(parts[0]));
}

function failed(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof api.Refused)) throw error;
  tell(error.message, error.hint);
}

function showPlace() {
  const { parts, place } = state.opened;
  const label = place ? place.key : parts[0].label;
  const search = () => {
    byId("text").value = byId("add")?.checked ? byId("text").value : "";
    ask(withPart({ ...parts[0], label: place ? `place ${place.key}` : label }));
  };
  byId("place").replaceChildren(
    el(
      "div",
      { class: "head" },
      el("div", {}, el("h2", {}, label), place ? el("p", { class: "coordinates" }, coordinates(place.longitude, place.latitude)) : ""),
      el("button", { type: "button", class: "plain", "aria-label": "Close this place", onclick: closePlace }, "✕"),
    ),
    ...(place ? [el("h3", {}, "Observed here"), observed(place)] : []),
    ...(place ? [el("div", { class: "actions" }, el("button", { type: "button", onclick: search }, "Search with this place"))] : []),
    el("h3", { id: "expected-title" }, "What the space expects here"),
    el("div", { id: "expected" }, el("p", { class: "note" }, "Comparing…")),
  );
  byId("place").hidden = false;
  byId("results").scrollTop = 0;
  if (byId("results").getBoundingClientRect().top > window.innerHeight * 0.7) byId("results").scrollIntoView({ behavior: "smooth" });
}

async function showExpected() {
  const { parts } = state.opened;
  const answer = await api.expect({ parts: parts.map(given) }, [], looking.signal);
  byId("expected-title")?.replaceChildren(`What the space expects here, by its ${named(answer.parts[0].modality)}`);
  byId("expected")?.replaceChildren(expected(answer, state.space.collections.length > 1, { onOpen: openHit }));
}

function closePlace() {
  looking?.abort();
  state.opened = null;
  byId("place").hidden = true;
  map.mark({ selected: null, point: null });
}

// ---- files and recordings

function take(file) {
  if (!state.space.reads.files.length) return tell("No modality of this space reads files.");
  if (file.size > state.space.upload_limit) {
    const [found, most] = [file.size, state.space.upload_limit].map((size) => `${(size / 2 ** 20).toFixed(1)} MiB`);
    return tell(`${file.name} has ${found}; this server takes ${most} at most.`, "Cut it, or start `geobind explore` with a larger --upload-limit.");
  }
  if (!byId("add")?.checked) byId("text").value = "";
  return ask(withPart({ file, weight: 1, label: file.name }));
}

async function record() {
  const button = byId("record");
  if (recorder) return recorder.stop();
  recorder = new Recorder({
    onSeconds: (seconds) => {
      byId("record-label").textContent = `Stop ${seconds.toFixed(0)} s`;
    },
    onEnd: (file) => {
      recorder = null;
      button.classList.remove("recording");
      byId("record-label").textContent = "Record";
      if (file) take(file);
    },
  });
  button.classList.add("recording");
  byId("record-label").textContent = "Stop";
  try {
    await recorder.start();
  } catch (error) {
    recorder?.stop();
    tell("The microphone cannot be used.", error.name === "NotAllowedError" ? "Allow this page to use it." : error.message);
  }
}

function listenToDrops() {
  let inside = 0;
  const isFile = (event) => event.dataTransfer?.types.includes("Files");
  const shade = (change) => {
    inside = change;
    byId("drop").hidden = inside <= 0;
  };
  addEventListener("dragenter", (event) => isFile(event) && shade(inside + 1));
  addEventListener("dragleave", (event) => isFile(event) && shade(inside - 1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    shade(0);
    if (event.dataTransfer.files.length > 1) tell("Several files were dropped; the first is taken.");
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
}

// ---- start

function showGalleries() {
  const select = byId("gallery");
  const several = state.space.collections.length > 1;
  select.replaceChildren(
    ...state.space.collections.flatMap((collection, at) =>
      collection.galleries.map((gallery) =>
        el(
          "option",
          { value: `${at} ${gallery.modality}`, selected: at === state.collection && gallery.modality === state.gallery },
          `${several ? `${collection.name}: ` : ""}${named(gallery.modality)} (${number(gallery.rows)})`,
        ),
      ),
    ),
  );
  const waiting = state.space.collections.flatMap((collection) => collection.preparing);
  byId("preparing").hidden = !waiting.length;
  byId("preparing").replaceChildren(
    ...waiting.map((one) =>
      one.failed
        ? el("span", {}, `${named(one.modality)} could not be embedded: ${one.failed}`)
        : el("label", {}, `Embedding ${named(one.modality)}: ${number(one.done)} of ${one.total ? number(one.total) : "…"}`,
          el("progress", { max: one.total || 1, value: one.done })),
    ),
  );
}

async function watchPreparing() {
  const count = (space) => space.collections.reduce((sum, collection) => sum + collection.galleries.length, 0);
  while (state.space.collections.some((collection) => collection.preparing.some((one) => !one.failed))) {
    await new Promise((resolve) => setTimeout(resolve, PREPARING));
    const before = count(state.space);
    try {
      state.space = await api.describeSpace();
    } catch {
      continue; // it may be back in a moment
    }
    showGalleries();
    if (count(state.space) > before && state.opened) showExpected().catch(failed);
  }
}

async function showCollection() {
  byId("nowhere").hidden = hasPlaces();
  map.setPlaces(hasPlaces() ? await api.fetchPlaces(state.collection) : new Float32Array(0));
  byId("inview").disabled = byId("geojson").hidden = !hasPlaces();
}

function showSpace() {
  const { space } = state;
  document.title = `${space.name}: GeoBind explore`;
  byId("name").textContent = space.name;
  byId("summary").textContent = `${space.modalities.map(named).join(", ")} in ${space.embed_dim} dimensions`;
  byId("reader").replaceChildren(...space.reads.text.map((name) => el("option", { value: name }, named(name))));
  byId("reader").hidden = space.reads.text.length < 2;
  byId("text").disabled = byId("go").disabled = !space.reads.text.length;
  byId("text").placeholder = space.reads.text.length ? `Describe a place${space.examples.length ? `: ${space.examples[0]}` : ""}` : "No modality of this space reads texts";
  byId("record").hidden = !canRecord || !space.reads.files.length;
  byId("choose").hidden = !space.reads.files.length;
  const examples = space.examples.map((text) =>
    el("button", { type: "button", class: "plain", onclick: () => {
      byId("text").value = text;
      searchText();
    } }, text),
  );
  byId("hints").replaceChildren(...(examples.length ? ["Try ", ...examples] : []));
}

function searchText() {
  const text = byId("text").value.trim();
  if (!text) return byId("text").focus();
  const place = A_PLACE.exec(text);
  if (place && Math.abs(place[2]) <= 90) {
    const [longitude, latitude] = [Number(place[1]), Number(place[2])];
    if (state.space.reads.coordinates.length) return openPoint(longitude, latitude);
    if (hasPlaces()) {
      const row = map.nearest(...map.toPixels(longitude, latitude));
      if (row !== null) return open(state.collection, row);
    }
  }
  const reader = state.space.reads.text.length > 1 ? { modality: byId("reader").value } : {};
  return ask(withPart({ text, weight: 1, label: text, ...reader }));
}

function listen() {
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    searchText();
  });
  byId("choose").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (file) take(file);
  });
  byId("record").addEventListener("click", record);
  byId("closer").addEventListener("click", () => map.zoom(1.6));
  byId("farther").addEventListener("click", () => map.zoom(1 / 1.6));
  byId("everything").addEventListener("click", () => map.showEverything());
  byId("csv").addEventListener("click", () => save("csv"));
  byId("geojson").addEventListener("click", () => save("geojson"));
  byId("inview").addEventListener("change", () => state.parts.length && ask(state.parts));
  byId("gallery").addEventListener("change", async (event) => {
    const [at, modality] = event.target.value.split(" ");
    const another = Number(at) !== state.collection;
    [state.collection, state.gallery] = [Number(at), modality];
    if (another) {
      closePlace();
      forget();
      await showCollection();
    }
    if (state.parts.length) ask(state.parts);
  });
  listenToDrops();
}

function hover(row) {
  const tip = byId("tip");
  tip.hidden = row === null;
  if (row === null) return;
  const [x, y] = map.toPixels(map.places[2 * row], map.places[2 * row + 1]);
  const where = coordinates(map.places[2 * row], map.places[2 * row + 1]);
  tip.textContent = state.answer ? `${score(state.answer.scores[row])}  ${where}` : where;
  tip.style.left = `${Math.max(90, Math.min(map.width - 90, x))}px`;
  tip.style.top = `${Math.max(30, y - 12)}px`;
}

let lastView = "";

// The map has come to rest.
function viewed() {
  if (!state.space) return;
  showCells();
  const now = JSON.stringify(map.bounds);
  if (now !== lastView && byId("inview").checked && state.parts.length) ask(state.parts);
  lastView = now;
}

async function start() {
  state.space = await api.describeSpace();
  state.gallery = state.space.collections[0].galleries[0].modality;
  map = new WorldMap(byId("canvas"), {
    onPick: (row, longitude, latitude) => {
      if (row !== null) open(state.collection, row);
      else if (state.space.reads.coordinates.length) openPoint(longitude, latitude);
    },
    onView: viewed,
    onHover: hover,
  });
  listen();
  showSpace();
  showGalleries();
  await showCollection();
  summarise();
  document.body.dataset.ready = "yes";
  watchPreparing();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showLegend);
start().catch((error) => {
  tell(error.message, error.hint ?? "");
  throw error;
});
