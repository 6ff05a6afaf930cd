// What the page asks of its server. Every address is relative: nothing else is ever requested.

export class Refused extends Error {
  constructor(status, answer) {
    super(answer.error);
    this.status = status;
    this.hint = answer.hint || "";
    this.choices = answer.choices || [];
  }
}

async function answered(request) {
  let response;
  try {
    response = await request;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, { error: "The server does not answer.", hint: "Is `geobind explore` still running?" });
  }
  if (response.ok) return response;
  let answer;
  try {
    answer = await response.json();
  } catch {
    answer = {};
  }
  throw new Refused(response.status, { error: `The server answered ${response.status}.`, ...answer });
}

export async function describeSpace() {
  return (await answered(fetch("api/space"))).json();
}

export async function fetchPlaces(collection) {
  const content = await (await answered(fetch(`api/collections/${collection}/places`))).arrayBuffer();
  return new Float32Array(content); // longitude, latitude, longitude, …; every machine with a browser is little-endian
}

export async function fetchRow(collection, row, signal) {
  return (await answered(fetch(`api/collections/${collection}/rows/${row}`, { signal }))).json();
}

function posted(address, wanted, files, signal) {
  if (!files.length) {
    return answered(
      fetch(address, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(wanted), signal }),
    );
  }
  const form = new FormData();
  form.append("query", JSON.stringify(wanted));
  for (const file of files) form.append("files", file, "file"); // its name is nobody's business
  return answered(fetch(address, { method: "POST", body: form, signal }));
}

export async function query(wanted, files, signal) {
  const answer = await (await posted("api/query", wanted, files, signal)).json();
  const bytes = Uint8Array.from(atob(answer.scores), (letter) => letter.charCodeAt(0));
  return { ...answer, scores: new Float32Array(bytes.buffer) };
}

export async function download(wanted, files, format) {
  return (await posted("api/query", { ...wanted, format }, files)).blob();
}

export async function expect(wanted, files, signal) {
  return (await posted("api/expect", wanted, files, signal)).json();
}
