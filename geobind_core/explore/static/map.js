// A map of the whole Earth on a canvas: longitude to the right, latitude upwards, a degree as long as the other.

import { shadeOf } from "./colours.js";

const STEPS = [45, 30, 15, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001];
const CELL = 7; // pixels, where places are too many to be told apart
const CROWDED = 9; // pixels from a place to the next
const NEAR = 18; // pixels: a click this close to a place means it
const MOST_SCALE = 200000; // pixels of a degree
const METRES_OF_A_DEGREE = 111195;

export class WorldMap {
  // places: Float32Array of longitude, latitude, …; told: {onPick(row | null, longitude, latitude), onView(), onHover(row | null)}
  constructor(canvas, told) {
    this.canvas = canvas;
    canvas.map = this; // for whoever drives the page by a script
    this.told = told;
    this.places = new Float32Array(0);
    this.scores = null;
    this.limits = null;
    this.order = new Uint32Array(0);
    this.centre = [0, 0];
    this.scale = 0;
    this.selected = null;
    this.hovered = null;
    this.point = null;
    this.ringed = [];
    this.gridded = false;
    this.pointers = new Map();
    new ResizeObserver(() => this.resize()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.listen();
    this.resize();
  }

  setPlaces(places) {
    this.places = places;
    this.setScores(null, null);
    this.selected = this.hovered = this.point = null;
    this.ringed = [];
    this.showEverything();
  }

  setScores(scores, limits) {
    this.scores = scores;
    this.limits = limits;
    const count = this.places.length / 2;
    let order = Uint32Array.from({ length: count }, (_, row) => row);
    order = order.filter((row) => !Number.isNaN(this.places[2 * row]) && !(scores && Number.isNaN(scores[row])));
    if (scores) order.sort((a, b) => scores[a] - scores[b]); // the best are drawn last, above all others
    this.order = order;
    this.draw();
  }

  mark({ selected = this.selected, hovered = this.hovered, ringed = this.ringed, point = this.point }) {
    Object.assign(this, { selected, hovered, ringed, point });
    this.draw();
  }

  // ---- where things are

  get least() {
    return Math.min(this.width / 360, this.height / 180);
  }

  toPixels(longitude, latitude) {
    let across = longitude - this.centre[0];
    across -= 360 * Math.round(across / 360);
    return [this.width / 2 + across * this.scale, this.height / 2 - (latitude - this.centre[1]) * this.scale];
  }

  toPlace(x, y) {
    const longitude = this.centre[0] + (x - this.width / 2) / this.scale;
    const latitude = this.centre[1] - (y - this.height / 2) / this.scale;
    return [((((longitude + 180) % 360) + 360) % 360) - 180, latitude];
  }

  // West, south, east, north of what is seen.
  get bounds() {
    const [half, tall] = [this.width / 2 / this.scale, this.height / 2 / this.scale];
    const south = Math.max(-90, this.centre[1] - tall);
    const north = Math.min(90, this.centre[1] + tall);
    if (half >= 180) return [-180, south, 180, north];
    const wrapped = (longitude) => ((((longitude + 180) % 360) + 360) % 360) - 180;
    return [wrapped(this.centre[0] - half), south, wrapped(this.centre[0] + half), north];
  }

  resize() {
    const box = this.canvas.getBoundingClientRect();
    if (!box.width || !box.height) return;
    const ratio = window.devicePixelRatio || 1;
    const first = !this.width;
    [this.width, this.height] = [box.width, box.height];
    this.canvas.width = Math.round(box.width * ratio);
    this.canvas.height = Math.round(box.height * ratio);
    if (first || this.whole) this.showEverything();
    else this.move(0, 0);
  }

  showEverything() {
    if (!this.width) return;
    let [west, east, south, north] = [Infinity, -Infinity, Infinity, -Infinity];
    for (let at = 0; at < this.places.length; at += 2) {
      if (Number.isNaN(this.places[at])) continue;
      west = Math.min(west, this.places[at]);
      east = Math.max(east, this.places[at]);
      south = Math.min(south, this.places[at + 1]);
      north = Math.max(north, this.places[at + 1]);
    }
    if (!(east >= west) || east - west > 180) [west, east, south, north] = [-180, 180, -90, 90];
    const [wide, tall] = [Math.max(east - west, 0.01) * 1.08, Math.max(north - south, 0.01) * 1.12];
    this.centre = [(west + east) / 2, (south + north) / 2];
    this.scale = wide >= 360 ? this.least : Math.min(this.width / wide, this.height / tall);
    this.move(0, 0);
    this.whole = true;
  }

  move(x, y) {
    this.whole = false;
    this.scale = Math.max(this.least, Math.min(MOST_SCALE, this.scale));
    const tall = this.height / 2 / this.scale;
    const [longitude, latitude] = [this.centre[0] - x / this.scale, this.centre[1] + y / this.scale];
    const reach = Math.max(0, 90 - tall);
    this.centre = [((((longitude + 180) % 360) + 360) % 360) - 180, Math.max(-reach, Math.min(reach, latitude))];
    if (this.hovered !== null) {
      this.hovered = null;
      this.told.onHover(null);
    }
    this.draw();
    clearTimeout(this.settling);
    this.settling = setTimeout(() => this.told.onView(), 150);
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const scale = Math.max(this.least, Math.min(MOST_SCALE, this.scale * factor));
    const change = 1 / this.scale - 1 / scale; // what is under the pointer stays there
    this.centre = [
      this.centre[0] + (x - this.width / 2) * change,
      this.centre[1] - (y - this.height / 2) * change,
    ];
    this.scale = scale;
    this.move(0, 0);
  }

  reveal(row) {
    const [x, y] = this.toPixels(this.places[2 * row], this.places[2 * row + 1]);
    if (x < 20 || y < 20 || x > this.width - 20 || y > this.height - 20) {
      this.centre = [this.places[2 * row], this.places[2 * row + 1]];
      this.move(0, 0);
    }
  }

  nearest(x, y, reach = Infinity) {
    let [found, least] = [null, reach * reach];
    for (const row of this.order) {
      const [px, py] = this.toPixels(this.places[2 * row], this.places[2 * row + 1]);
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance <= least) [found, least] = [row, distance];
    }
    return found;
  }

  // ---- what a person does

  listen() {
    const { canvas } = this;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    let travelled = 0;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      if (!this.pointers.size) travelled = 0;
      this.pointers.set(event.pointerId, at(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = at(event);
      if (!this.pointers.has(event.pointerId)) {
        this.hover(x, y);
        return;
      }
      const before = [...this.pointers.values()];
      const [lastX, lastY] = this.pointers.get(event.pointerId);
      this.pointers.set(event.pointerId, [x, y]);
      const now = [...this.pointers.values()];
      if (now.length >= 2) {
        travelled = Infinity;
        const apart = (points) => Math.hypot(points[0][0] - points[1][0], points[0][1] - points[1][1]) || 1;
        const middle = (points, axis) => (points[0][axis] + points[1][axis]) / 2;
        this.move(middle(now, 0) - middle(before, 0), middle(now, 1) - middle(before, 1));
        this.zoom(apart(now) / apart(before), middle(now, 0), middle(now, 1));
        return;
      }
      travelled += Math.hypot(x - lastX, y - lastY);
      if (travelled > 4) {
        canvas.classList.add("dragged");
        this.move(x - lastX, y - lastY);
      }
    });
    const end = (event, picks) => {
      if (!this.pointers.delete(event.pointerId)) return;
      canvas.classList.remove("dragged");
      if (picks && travelled <= 4 && !this.pointers.size) this.pick(...at(event));
    };
    canvas.addEventListener("pointerup", (event) => end(event, true));
    canvas.addEventListener("pointercancel", (event) => end(event, false));
    canvas.addEventListener("pointerleave", () => this.hover(-1e9, -1e9));
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const turned = event.deltaY * (event.deltaMode === 1 ? 20 : 1) * (event.ctrlKey ? 5 : 1);
        this.zoom(Math.exp(-Math.max(-300, Math.min(300, turned)) / 500), ...at(event));
      },
      { passive: false },
    );
    canvas.addEventListener("keydown", (event) => {
      const keys = {
        ArrowLeft: () => this.move(60, 0),
        ArrowRight: () => this.move(-60, 0),
        ArrowUp: () => this.move(0, 60),
        ArrowDown: () => this.move(0, -60),
        "+": () => this.zoom(1.5),
        "=": () => this.zoom(1.5),
        "-": () => this.zoom(1 / 1.5),
        0: () => this.showEverything(),
        Enter: () => this.pick(this.width / 2, this.height / 2, Infinity),
      };
      if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      keys[event.key]();
    });
  }

  hover(x, y) {
    const row = x < 0 ? null : this.nearest(x, y, NEAR);
    if (row !== this.hovered) {
      this.mark({ hovered: row });
      this.told.onHover(row);
    }
  }

  pick(x, y, reach = NEAR) {
    const [longitude, latitude] = this.toPlace(x, y);
    if (Math.abs(latitude) > 90) return;
    this.told.onPick(this.nearest(x, y, reach), longitude, latitude);
  }

  // ---- drawing

  draw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = null;
      if (this.width) this.paint();
    });
  }

  paint() {
    const pen = this.canvas.getContext("2d");
    const ratio = this.canvas.width / this.width;
    const style = getComputedStyle(this.canvas);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, this.width, this.height);
    const labels = this.paintGraticule(pen, colour);
    this.paintPlaces(pen, colour);
    this.paintLabels(pen, labels, colour);
    for (const row of this.ringed) this.paintRing(pen, row, this.radius + 1.5, 1.5, colour("ink"));
    if (this.hovered !== null) this.paintRing(pen, this.hovered, this.radius + 4, 2, colour("ink"));
    if (this.selected !== null) this.paintRing(pen, this.selected, this.radius + 6, 3, colour("wrong"));
    if (this.point) this.paintCross(pen, colour("wrong"));
    this.paintScaleBar(pen, colour);
  }

  paintGraticule(pen, colour) {
    const step = STEPS.findLast((degrees) => degrees * this.scale >= 70) || STEPS[0];
    const digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
    const [top, bottom] = [90, -90].map((latitude) => this.toPixels(0, latitude)[1]);
    const reach = Math.min(this.width / 2 / this.scale, 180);
    const [left, right] = [-1, 1].map((side) => this.width / 2 + side * reach * this.scale);
    const labels = [];
    pen.fillStyle = colour("earth");
    pen.fillRect(left, top, right - left, bottom - top);
    pen.lineWidth = 1;
    const line = (x1, y1, x2, y2, strong) => {
      pen.strokeStyle = colour(strong ? "rest" : "grid");
      pen.beginPath();
      pen.moveTo(x1, y1);
      pen.lineTo(x2, y2);
      pen.stroke();
    };
    for (let n = Math.ceil((this.centre[0] - reach) / step); n * step <= this.centre[0] + reach; n += 1) {
      const x = this.width / 2 + (n * step - this.centre[0]) * this.scale;
      const longitude = ((((n * step + 180) % 360) + 360) % 360) - 180;
      line(x, Math.max(0, top), x, Math.min(this.height, bottom), Math.abs(longitude + 180) < step / 1e3);
      const side = longitude > 0 ? "°E" : longitude < 0 ? "°W" : "°";
      const text = Math.abs(longitude) >= 180 - step / 1e3 ? "180°" : Math.abs(longitude).toFixed(digits) + side;
      if (x > 24 && x < this.width - 24) labels.push([text, x, Math.min(this.height - 4, bottom + 16), "center"]);
    }
    for (let n = Math.ceil(-90 / step); n * step <= 90; n += 1) {
      const y = this.height / 2 - (n * step - this.centre[1]) * this.scale;
      if (y < -1 || y > this.height + 1) continue;
      line(Math.max(0, left), y, Math.min(this.width, right), y, n === 0);
      const latitude = n * step;
      const text = Math.abs(latitude).toFixed(digits) + (latitude > 0 ? "°N" : latitude < 0 ? "°S" : "°");
      if (y > 20 && y < this.height - 34) labels.push([text, Math.max(0, left) + 5, y - 2, "left"]);
    }
    return labels;
  }

  paintLabels(pen, labels, colour) {
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "bottom";
    pen.lineWidth = 3;
    pen.lineJoin = "round";
    pen.fillStyle = colour("quiet");
    pen.strokeStyle = colour("earth");
    for (const [text, x, y, align] of labels) {
      pen.textAlign = align;
      pen.strokeText(text, x, y);
      pen.fillText(text, x, y);
    }
  }

  // Places seen, as x and y of each.
  seen() {
    const rows = [];
    const found = [];
    for (const row of this.order) {
      const [x, y] = this.toPixels(this.places[2 * row], this.places[2 * row + 1]);
      if (x < -10 || y < -10 || x > this.width + 10 || y > this.height + 10) continue;
      rows.push(row);
      found.push(x, y);
    }
    return [rows, found];
  }

  paintPlaces(pen, colour) {
    const [rows, found] = this.seen();
    const area = Math.min(this.height, 180 * this.scale) * Math.min(this.width, 360 * this.scale);
    const apart = Math.sqrt(area / Math.max(1, rows.length));
    const gridded = apart < CROWDED;
    this.radius = gridded ? CELL / 2 : Math.max(3.5, Math.min(8, apart * 0.3));
    if (gridded !== this.gridded) {
      this.gridded = gridded;
      this.told.onView();
    }
    if (gridded) {
      this.paintCells(pen, rows, found, colour("rest"));
      return;
    }
    const [rest, edge] = [colour("rest"), colour("earth")];
    pen.lineWidth = 1;
    pen.strokeStyle = edge;
    for (let i = 0; i < rows.length; i += 1) {
      pen.fillStyle = this.scores ? shadeOf(this.scores[rows[i]], this.limits) : rest;
      pen.beginPath();
      pen.arc(found[2 * i], found[2 * i + 1], this.radius, 0, 7);
      pen.fill();
      pen.stroke();
    }
  }

  paintCells(pen, rows, found, rest) {
    const [wide, tall] = [Math.ceil(this.width / CELL) + 2, Math.ceil(this.height / CELL) + 2];
    const sums = new Float64Array(wide * tall);
    const counts = new Uint32Array(wide * tall);
    for (let i = 0; i < rows.length; i += 1) {
      const [across, down] = [Math.floor(found[2 * i] / CELL) + 1, Math.floor(found[2 * i + 1] / CELL) + 1];
      if (across < 0 || down < 0 || across >= wide || down >= tall) continue;
      counts[down * wide + across] += 1;
      sums[down * wide + across] += this.scores ? this.scores[rows[i]] : 0;
    }
    for (let cell = 0; cell < counts.length; cell += 1) {
      if (!counts[cell]) continue;
      pen.fillStyle = this.scores ? shadeOf(sums[cell] / counts[cell], this.limits) : rest;
      pen.fillRect(((cell % wide) - 1) * CELL, (Math.floor(cell / wide) - 1) * CELL, CELL - 0.5, CELL - 0.5);
    }
  }

  paintRing(pen, row, radius, wide, ink) {
    if (Number.isNaN(this.places[2 * row])) return;
    const [x, y] = this.toPixels(this.places[2 * row], this.places[2 * row + 1]);
    pen.lineWidth = wide;
    pen.strokeStyle = ink;
    pen.beginPath();
    pen.arc(x, y, radius, 0, 7);
    pen.stroke();
  }

  paintCross(pen, ink) {
    const [x, y] = this.toPixels(...this.point);
    pen.lineWidth = 2.5;
    pen.strokeStyle = ink;
    pen.beginPath();
    for (const [dx, dy] of [[9, 9], [9, -9]]) {
      pen.moveTo(x - dx, y - dy);
      pen.lineTo(x + dx, y + dy);
    }
    pen.stroke();
  }

  // A round number of kilometres, right in the middle of the map.
  paintScaleBar(pen, colour) {
    const metres = METRES_OF_A_DEGREE * Math.cos((this.centre[1] * Math.PI) / 180) / this.scale; // of a pixel
    const most = 110 * metres;
    const power = 10 ** Math.floor(Math.log10(most));
    const round = [5, 2, 1].find((n) => n * power <= most) * power;
    const long = round / metres;
    const text = round >= 1000 ? `${(round / 1000).toLocaleString("en")} km` : `${round} m`;
    const where = Math.abs(this.centre[1]) < 0.5 ? "" : ` at ${Math.abs(this.centre[1]).toFixed(0)}°`;
    const [x, y] = [60, 24];
    pen.lineJoin = "round";
    pen.textAlign = "left";
    pen.textBaseline = "bottom";
    pen.fillStyle = colour("ink");
    for (const [wide, ink] of [[5, "earth"], [2, "ink"]]) {
      pen.lineWidth = wide;
      pen.strokeStyle = colour(ink);
      pen.beginPath();
      pen.moveTo(x, y - 5);
      pen.lineTo(x, y);
      pen.lineTo(x + long, y);
      pen.lineTo(x + long, y - 5);
      pen.stroke();
      if (ink === "earth") pen.strokeText(text + where, x + 2, y - 5);
    }
    pen.fillText(text + where, x + 2, y - 5);
  }
}

