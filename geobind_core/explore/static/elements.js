// Elements of the page. What comes from data is only ever text: nothing in it becomes an element.

export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined)); // texts become text nodes
  return made;
}

export const byId = (id) => document.getElementById(id);

export const number = (value) => value.toLocaleString("en");

export const score = (value) => value.toFixed(3).replace("-", "−");

export const named = (modality) => modality.replaceAll("_", " ");

export function coordinates(longitude, latitude) {
  if (longitude === null || longitude === undefined) return "no coordinates";
  const north = `${Math.abs(latitude).toFixed(4)}° ${latitude < 0 ? "S" : "N"}`;
  return `${north}, ${Math.abs(longitude).toFixed(4)}° ${longitude < 0 ? "W" : "E"}`;
}

// One recording is heard at a time.
function alone(found) {
  found.addEventListener("play", () => {
    for (const other of playing) if (other !== found) other.pause();
    playing.clear();
    playing.add(found);
  });
  return found;
}

const playing = new Set();

export function player(url, label) {
  return alone(el("audio", { controls: true, preload: "metadata", src: url, "aria-label": label }));
}

// A button instead of a whole player, where there are many.
export function playButton(url, label) {
  const button = el("button", { type: "button", class: "play", "aria-label": `Play ${label}`, title: `Play ${label}` }, "▶");
  let sound = null;
  button.addEventListener("click", () => {
    if (!sound) {
      sound = alone(new Audio(url));
      sound.addEventListener("play", () => button.replaceChildren("❚❚"));
      for (const end of ["pause", "ended", "error"]) sound.addEventListener(end, () => button.replaceChildren("▶"));
    }
    if (sound.paused) sound.play().catch(() => button.replaceChildren("▶"));
    else sound.pause();
  });
  return button;
}

export function picture(url, label, properties = {}) {
  return el("img", { src: url, alt: label, loading: "lazy", decoding: "async", ...properties });
}
