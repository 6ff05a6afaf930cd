// Scores as colours: viridis, which is read the same in grey and by people who confuse red and green.

// matplotlib's viridis at 33 places.
const STOPS =
  "440154470d6048186a482374472d7b4537814240863e49893b528b375b8d33638d2f6b8e2c728e297a8e26828e23898e21918c1f988b" +
  "1fa08822a78528ae8032b67a3fbc734ec36b5ec96270cf5784d44b98d83eaddc30c2df23d8e219ece51bfde725";

const parsed = [];
for (let at = 0; at < STOPS.length; at += 6) {
  parsed.push([0, 2, 4].map((digit) => parseInt(STOPS.slice(at + digit, at + digit + 2), 16)));
}

export const SHADES = Array.from({ length: 256 }, (_, i) => {
  const place = (i / 255) * (parsed.length - 1);
  const low = Math.min(parsed.length - 2, Math.floor(place));
  const mixed = [0, 1, 2].map((c) => Math.round(parsed[low][c] + (parsed[low + 1][c] - parsed[low][c]) * (place - low)));
  return `rgb(${mixed.join(" ")})`;
});

// A few outliers do not take all the colours: those beyond have the last one.
export function limitsOf(scores) {
  const known = scores.filter((score) => !Number.isNaN(score)).sort();
  if (!known.length) return null;
  const at = (share) => known[Math.round(share * (known.length - 1))];
  let [low, high] = known.length > 200 ? [at(0.01), at(0.995)] : [known[0], known[known.length - 1]];
  if (!(high > low)) [low, high] = [low - 0.001, high + 0.001];
  return { low, high, least: known[0], greatest: known[known.length - 1] };
}

export function shadeOf(score, limits) {
  const share = (score - limits.low) / (limits.high - limits.low);
  return SHADES[Math.max(0, Math.min(255, Math.round(255 * share)))];
}

export function drawHistogram(canvas, scores, limits, ink) {
  const [bars, height] = [64, canvas.height - 18];
  const counts = new Float64Array(bars);
  const span = limits.greatest - limits.least || 1;
  for (const score of scores) {
    if (!Number.isNaN(score)) counts[Math.min(bars - 1, Math.floor(((score - limits.least) / span) * bars))] += 1;
  }
  const pen = canvas.getContext("2d");
  const wide = canvas.width / bars;
  const most = Math.max(...counts);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  for (let bar = 0; bar < bars; bar += 1) {
    const tall = counts[bar] ? Math.max(2, (counts[bar] / most) * (height - 4)) : 0;
    pen.fillStyle = ink;
    pen.fillRect(bar * wide, height - tall, wide - 1, tall);
    pen.fillStyle = shadeOf(limits.least + ((bar + 0.5) / bars) * span, limits);
    pen.fillRect(bar * wide, height + 3, wide + 1, 15);
  }
}
