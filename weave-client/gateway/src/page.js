// The page of `weave gateway`. What was drawn is kept in this browser (IndexedDB) and nowhere else, and not even there if
// somebody has turned that off.
const $ = (id) => document.getElementById(id);
const SIZES = [
  "128x128", "256x256", "512x512", "768x768", "1024x1024", "1216x832", "832x1216", "1344x768", "768x1344",
  "1536x1024", "1024x1536", "2048x2048",
];
const KEPT = 60;

let current = null; // The entry that is shown.
let running = null; // What stops the request under way.

// ---- Talking to the gateway.

function ask(path, options = {}) {
  const headers = { ...options.headers };
  const token = sessionStorage.getItem("token");
  if (token) headers.authorization = `Bearer ${token}`;
  return fetch(path, { ...options, headers });
}

class Refused extends Error {
  constructor(status, error) {
    super(error?.message ?? `the gateway answered ${status}`);
    this.status = status;
    this.param = error?.param;
  }
}

async function json(path, options) {
  const response = await ask(path, options);
  const body = await response.json().catch(() => null);
  if (!response.ok) throw new Refused(response.status, body?.error);
  return body;
}

// ---- What is kept.

const database = new Promise((resolve, reject) => {
  const opening = indexedDB.open("weave", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore("drawn", { keyPath: "id", autoIncrement: true });
  opening.onsuccess = () => resolve(opening.result);
  opening.onerror = () => reject(opening.error);
});

async function store(mode, work) {
  const drawn = (await database).transaction("drawn", mode).objectStore("drawn");
  const asked = work(drawn);
  return new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

// Asked each time: another tab may have turned it off.
function keeps() {
  return localStorage.getItem("history") !== "off";
}

async function entries() {
  if (!keeps()) return [];
  return (await store("readonly", (drawn) => drawn.getAll())).reverse();
}

async function keep(entry) {
  if (!keeps()) return;
  entry.id = await store("readwrite", (drawn) => drawn.add(entry));
  for (const old of (await entries()).slice(KEPT)) await store("readwrite", (drawn) => drawn.delete(old.id));
}

// ---- What is shown.

function link(element, property, blob) {
  if (element[property].startsWith("blob:")) URL.revokeObjectURL(element[property]);
  element[property] = URL.createObjectURL(blob);
}

function times(size) {
  return size.replace("x", "×");
}

function facts(entry) {
  const weave = entry.weave;
  return [
    ["Size", times(entry.size)],
    ["Steps", weave.steps],
    ["CFG", weave.cfg],
    ["Seed", weave.seed],
    ["Made by", weave.model ? `${weave.provider} (${weave.model})` : weave.provider],
    ["Without", weave.dropped?.join(", ")],
    ["Took", `${entry.seconds.toFixed(1)} s`],
    ["Drawn", new Date(entry.at).toLocaleString()],
  ].filter(([, value]) => value !== undefined && value !== null && value !== "");
}

function show(entry) {
  current = entry;
  $("figure").hidden = !entry;
  $("nothing").hidden = Boolean(entry) || Boolean(running);
  if (!entry) return;
  link($("image"), "src", entry.blob);
  [$("image").width, $("image").height] = entry.size.split("x").map(Number);
  $("image").alt = entry.prompt;
  $("shown-prompt").textContent = entry.prompt;
  $("facts").replaceChildren(...facts(entry).flatMap(([name, value]) => {
    const [term, detail] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = name;
    detail.textContent = value;
    return [term, detail];
  }));
  link($("download"), "href", entry.blob);
  $("download").download = `weave-${entry.weave.seed ?? entry.at}.png`;
  for (const button of $("history").querySelectorAll("button")) {
    button.setAttribute("aria-current", String(Number(button.dataset.id) === entry.id));
  }
}

async function showHistory() {
  const all = await entries();
  for (const image of $("history").querySelectorAll("img")) URL.revokeObjectURL(image.src);
  $("history-section").hidden = all.length === 0;
  $("history").replaceChildren(...all.map((entry) => {
    const [item, button, image] = ["li", "button", "img"].map((name) => document.createElement(name));
    image.src = URL.createObjectURL(entry.blob);
    image.alt = entry.prompt;
    button.type = "button";
    button.dataset.id = entry.id;
    button.setAttribute("aria-current", String(entry.id === current?.id));
    button.onclick = () => {
      show(entry);
      news(`Shown: ${entry.prompt}`);
    };
    button.append(image);
    item.append(button);
    return item;
  }));
}

function news(text) {
  $("news").textContent = text;
}

function problem(text, field) {
  for (const marked of document.querySelectorAll("[aria-invalid]")) marked.removeAttribute("aria-invalid");
  $("problem").textContent = text;
  const input = field && $(field);
  if (input) {
    input.setAttribute("aria-invalid", "true");
    input.focus();
  }
}

// ---- Drawing.

function wanted() {
  const body = { prompt: $("prompt").value, size: $("size").value };
  for (const name of ["steps", "cfg"]) {
    if ($(name).value.trim() !== "") body[name] = Number($(name).value);
    else if ($(name).validity.badInput) throw new Refused(0, { message: `${name} is no number`, param: name });
  }
  const seed = $("seed").value.trim();
  if (seed === "") return JSON.stringify(body);
  if (!/^[0-9]{1,20}$/.test(seed)) throw new Refused(0, { message: "seed must be a whole number, or empty", param: "seed" });
  // As it was typed: a number of JavaScript's would lose the last digits of a large one.
  return JSON.stringify(body).replace(/\}$/, `,"seed":${BigInt(seed)}}`);
}

// Says how far it is until `over`: how long it took so far each second, and aloud only what has changed.
function watch(over) {
  const began = performance.now();
  let before = Infinity; // At most so many are before this one.
  let said = "";
  const tell = (text) => {
    if (text !== said) {
      said = text;
      $("state").textContent = text;
    }
  };
  const tick = () => ($("elapsed").textContent = `${Math.floor((performance.now() - began) / 1000)} s`);
  const look = async () => {
    const { daemon } = await json("/status", { signal: over });
    if (!daemon) return tell("Under way");
    before = Math.min(before, Math.max(daemon.waiting - 1, 0));
    const shows = daemon.waiting === 0 && daemon.running === 1 && daemon.steps;
    if (shows) [$("progress").max, $("progress").value] = [daemon.steps, daemon.step];
    else $("progress").removeAttribute("value");
    if (!daemon.ready) tell("The daemon is not ready yet");
    else if (daemon.waiting > 0) tell(before === 0 ? "Next in the queue" : `In the queue, at most ${before} before this one`);
    else tell(shows ? `Drawing, step ${daemon.step} of ${daemon.steps}` : "Drawing");
  };
  tell("Sent");
  news("Drawing begins.");
  tick();
  const ticks = setInterval(tick, 1000);
  const looks = setInterval(() => look().catch(() => tell("Under way")), 1000);
  // Aloud, and seldom.
  const sayings = setInterval(() => news(`${said}, ${$("elapsed").textContent}`), 15000);
  over.addEventListener("abort", () => [ticks, looks, sayings].forEach(clearInterval));
}

async function draw() {
  problem("");
  if (!$("token-field").hidden) sessionStorage.setItem("token", $("token").value.trim());
  let body;
  try {
    body = wanted();
  } catch (error) {
    return problem(error.message, error.param);
  }
  const stop = new AbortController();
  const over = new AbortController();
  running = stop;
  $("draw").disabled = true;
  $("stop").hidden = false;
  $("waiting").hidden = false;
  $("nothing").hidden = true;
  $("progress").removeAttribute("value");
  watch(over.signal);
  const began = performance.now();
  try {
    const answer = await json("/v1/images/generations", {
      method: "POST", body, signal: stop.signal, headers: { "content-type": "application/json" },
    });
    const { prompt, size } = JSON.parse(body);
    const bytes = Uint8Array.from(atob(answer.data[0].b64_json), (char) => char.charCodeAt(0));
    const entry = {
      blob: new Blob([bytes], { type: "image/png" }), prompt, size: answer.size ?? size, weave: answer.data[0].weave,
      seconds: (performance.now() - began) / 1000, at: Date.now(),
    };
    // Numbers beyond what JavaScript can count would be wrong ones.
    if (entry.weave.seed !== undefined && !Number.isSafeInteger(entry.weave.seed)) entry.weave.seed = $("seed").value.trim();
    // Without a place to keep it, it is shown all the same.
    await keep(entry).catch(() => {});
    show(entry);
    await showHistory().catch(() => {});
    news(`Done, after ${entry.seconds.toFixed(1)} seconds.`);
  } catch (error) {
    if (stop.signal.aborted) news("Stopped.");
    else if (error.status === 401) {
      $("token-field").hidden = false;
      problem("The token is missing or wrong.", "token");
    } else problem(error instanceof Refused ? error.message : "The gateway does not answer.", error.param);
  } finally {
    over.abort();
    running = null;
    const wasOnStop = document.activeElement === $("stop");
    $("draw").disabled = false;
    $("stop").hidden = true;
    $("waiting").hidden = true;
    $("nothing").hidden = Boolean(current);
    if (wasOnStop) $("draw").focus();
  }
}

function use(settings) {
  if (settings.size && ![...$("size").options].some((option) => option.value === settings.size)) {
    $("size").prepend(new Option(times(settings.size), settings.size));
  }
  for (const [name, value] of Object.entries(settings)) if (value !== undefined) $(name).value = value;
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) draw();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
$("stop").addEventListener("click", () => running?.abort());
$("again").addEventListener("click", () => {
  const { prompt, size, weave } = current;
  use({ prompt, size, steps: weave.steps, cfg: weave.cfg, seed: weave.seed ?? "" });
  $("prompt").focus();
});
$("remove").addEventListener("click", async () => {
  if (current.id !== undefined) await store("readwrite", (drawn) => drawn.delete(current.id));
  show((await entries())[0] ?? null);
  await showHistory();
  news("Removed.");
  $("prompt").focus();
});
async function clear(saying) {
  await store("readwrite", (drawn) => drawn.clear());
  show(null);
  await showHistory();
  news(saying);
}

$("clear").addEventListener("click", async () => {
  if (!confirm("Remove all images from this browser?")) return;
  await clear("All removed.");
  $("prompt").focus();
});
$("keep").checked = keeps();
$("keep").addEventListener("change", async () => {
  if ($("keep").checked) {
    localStorage.removeItem("history");
    return news("Images are kept from now on.");
  }
  if ((await entries()).length > 0 && !confirm("Remove all images from this browser, and keep none from now on?")) {
    $("keep").checked = true;
    return undefined;
  }
  localStorage.setItem("history", "off");
  return clear("Nothing is kept from now on.");
});

$("size").append(new Option("default", "auto"), ...SIZES.map((size) => new Option(times(size), size)));
json("/status").then(({ defaults }) => use(defaults)).catch((error) => {
  if (error.status === 401) $("token-field").hidden = false;
});
entries().then((all) => {
  if (all.length > 0) show(all[0]);
  return showHistory();
}).catch(() => {});
