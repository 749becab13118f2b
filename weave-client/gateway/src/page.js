// The page of `weave gateway`. What was drawn is kept in this browser (IndexedDB) and nowhere else, and not even there if
// somebody has turned that off.
const $ = (id) => document.getElementById(id);
const SIZES = [
  "128x128", "256x256", "512x512", "768x768", "1024x1024", "1216x832", "832x1216", "1344x768", "768x1344",
  "1536x1024", "1024x1536", "2048x2048",
];
const KEPT = 60;
const MOST_PROMPT = 2048; // Bytes.
const MOST_FILE = 64 << 20; // Bytes, more than an image of Weave's largest has.
const SEEDS = 2n ** 64n;
const TITLE = document.title;
// Below this width the image is under the form.
const NARROW = matchMedia("(max-width: 55.99rem)");
// Whoever looks at the page on the server's own machine can start a server there.
const HERE = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);

let current = null; // The entry that is shown.
let running = null; // What stops the drawing under way.
let model = null; // What the image server draws with, if it says.
let offered = null; // What fields were filled with that nobody had changed.
let removed = null; // The entry that was removed last.

// ---- Talking to the gateway.

function ask(path, options = {}) {
  const headers = { ...options.headers };
  const token = sessionStorage.getItem("token");
  if (token) headers.authorization = `Bearer ${token}`;
  return fetch(path, { ...options, headers });
}

// The gateway's word that something isn't done, or this page's own about a field.
class Refused extends Error {
  constructor(message, { status, code, param, retryAfter } = {}) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }
}

async function json(path, options) {
  const response = await ask(path, options);
  const body = await response.json().catch(() => null);
  if (response.ok) return body;
  const { message = `the gateway answered ${response.status}`, code, param } = body?.error ?? {};
  throw new Refused(message, { status: response.status, code, param, retryAfter: response.headers.get("retry-after") });
}

// ---- What is kept.

const database = new Promise((resolve, reject) => {
  const opening = indexedDB.open("weave", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore("drawn", { keyPath: "id", autoIncrement: true });
  opening.onsuccess = () => resolve(opening.result);
  opening.onerror = () => reject(opening.error);
});
// Other tabs hear of what has changed.
const tabs = new BroadcastChannel("weave");

async function store(mode, work) {
  const drawn = (await database).transaction("drawn", mode).objectStore("drawn");
  const asked = work(drawn);
  return new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

async function change(work) {
  const result = await store("readwrite", work);
  tabs.postMessage("changed");
  return result;
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
  entry.id = await change((drawn) => drawn.put(entry));
  for (const old of (await entries()).slice(KEPT)) await change((drawn) => drawn.delete(old.id));
}

// ---- What is shown.

function link(element, property, blob) {
  if (element[property].startsWith("blob:")) URL.revokeObjectURL(element[property]);
  element[property] = URL.createObjectURL(blob);
}

function times(size) {
  return size.replace("x", "×");
}

function seconds(number) {
  return `${number.toFixed(1)} s`;
}

// Entries of earlier versions have another name for it.
function cfgScale({ weave }) {
  return weave.cfg_scale ?? weave.cfg;
}

function facts(entry) {
  const { weave } = entry;
  const took = weave.generation_time_ms === undefined ? entry.seconds : weave.generation_time_ms / 1000;
  const waited = entry.seconds - took;
  return [
    ["Size", times(entry.size)],
    ["Steps", weave.steps],
    ["CFG scale", cfgScale(entry)],
    ["Seed", weave.seed],
    ["Model", weave.model ?? entry.model],
    ["Made by", weave.provider === "local" ? "" : weave.provider],
    ["Without", weave.dropped?.map((name) => (name === "cfg_scale" || name === "cfg" ? "CFG scale" : name)).join(", ")],
    ["Took", seconds(took)],
    ["Waited", waited >= 1 ? seconds(waited) : ""],
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

// Looked at in the list of tabs, too.
function title(text) {
  document.title = text ? `${text} – ${TITLE}` : TITLE;
}

function toView(element) {
  if (NARROW.matches) element.scrollIntoView();
}

// ---- What the gateway says of itself and of the image server.

let nextGreeting = 0;

// Again and again as long as there is no image server.
async function greet() {
  clearTimeout(nextGreeting);
  const status = await json("/status");
  $("version").textContent = `Weave ${status.version}`;
  offer(status.defaults);
  tellModel(status.model);
  tellServer(status.available);
  return status;
}

function greeting() {
  return greet().catch((error) => {
    if (error.status === 401) $("token-field").hidden = false;
  });
}

function tellServer(available) {
  const wasDown = $("down").textContent !== "";
  if (available) {
    $("down").textContent = "";
    if (wasDown) news("The image server is running again.");
    return;
  }
  if (!wasDown) {
    $("down").textContent = HERE
      ? "The image server isn't running. To start it, run weaved in a terminal."
      : "The image server isn't running. Whoever looks after it has to start it.";
  }
  nextGreeting = setTimeout(greeting, 3000);
}

function tellModel(said) {
  // What the server before had.
  if (said) model = said;
  $("model").textContent = model && !model.toy ? `Draws with ${model.name}.` : "";
  $("toy").hidden = !model?.toy;
  if (model?.toy) {
    const draws = model.draws ? `It can only draw ${model.draws}.` : "It draws no real pictures.";
    $("toy-text").textContent = `This is the ${model.name}, to try Weave with. ${draws}`;
  }
  if (model) {
    $("prompt").placeholder = model.toy
      ? "for example: a red circle on a blue background" : "for example: a lighthouse in a storm, oil on canvas";
  }
}

// ---- The form.

// What suits the model, into fields that nobody has changed.
function offer(defaults) {
  const { size, ...rest } = defaults;
  $("size").options[0].text = `default (${times(size)})`;
  for (const [name, value] of Object.entries(rest)) {
    const field = $(name);
    if (field && (field.value === "" || field.value === String(offered?.[name]))) field.value = value;
  }
  offered = defaults;
}

function use(settings) {
  for (const [name, value] of Object.entries(settings)) {
    if (value === undefined) continue;
    $(name).value = value;
    if (name !== "size" || $("size").value !== "") continue;
    $("size").value = "other";
    [$("width").value, $("height").value] = value.split("x");
  }
  if (settings.seed !== undefined) $("lock").checked = settings.seed !== "";
  changed();
}

// Until the tab is closed, unless nothing is to be kept.
const FIELDS = ["prompt", "size", "width", "height", "steps", "cfg_scale", "count", "seed"];

function changed() {
  for (const element of document.querySelectorAll("[data-custom]")) element.hidden = $("size").value !== "other";
  const bytes = byteLength($("prompt").value);
  const left = MOST_PROMPT - bytes;
  if (left < 0) $("room").textContent = `Too long by ${-left} bytes of ${MOST_PROMPT}.`;
  else $("room").textContent = left < 300 ? `Room for ${left} of ${MOST_PROMPT} bytes.` : "";
  if (!keeps()) return sessionStorage.removeItem("form");
  const form = FIELDS.filter((name) => $(name).value !== String(offered?.[name] ?? "")).map((name) => [name, $(name).value]);
  return sessionStorage.setItem("form", JSON.stringify(Object.fromEntries(form)));
}

// As it was before the page was loaded anew.
function kept() {
  try {
    const form = JSON.parse(sessionStorage.getItem("form"));
    return Object.fromEntries(FIELDS.filter((name) => typeof form[name] === "string").map((name) => [name, form[name]]));
  } catch {
    return {};
  }
}

function byteLength(text) {
  return new TextEncoder().encode(text).length;
}

function wholeNumber(field, name, least, most, step = 1) {
  const number = Number($(field).value);
  const isWhole = $(field).value.trim() !== "" && number >= least && number <= most && number % step === 0;
  if (isWhole) return number;
  const what = step === 1 ? "a whole number" : `a multiple of ${step}`;
  throw new Refused(`${name} must be ${what} from ${least} to ${most}.`, { param: field });
}

function isOpen(field) {
  return $(field).value.trim() === "" && !$(field).validity.badInput;
}

// What the form asks for; what it leaves open isn't there.
function wanted() {
  const prompt = $("prompt").value;
  if (prompt.trim() === "") throw new Refused("Say what to draw.", { param: "prompt" });
  const tooMany = byteLength(prompt) - MOST_PROMPT;
  if (tooMany > 0) {
    const more = "Letters outside of plain English count as two to four.";
    throw new Refused(`The prompt is too long by ${tooMany} bytes: it may have ${MOST_PROMPT}. ${more}`, { param: "prompt" });
  }
  const settings = { prompt, size: $("size").value };
  if (settings.size === "other") {
    const sides = [["width", "The width"], ["height", "The height"]].map(([side, name]) => wholeNumber(side, name, 64, 2048, 64));
    settings.size = sides.join("x");
  }
  if (!isOpen("steps")) settings.steps = wholeNumber("steps", "Steps", 1, 100);
  if (!isOpen("cfg_scale")) {
    const number = Number($("cfg_scale").value);
    if ($("cfg_scale").validity.badInput || !(number >= 0 && number <= 20)) {
      throw new Refused("CFG scale must be a number from 0 to 20.", { param: "cfg_scale" });
    }
    settings.cfg_scale = number;
  }
  const seed = $("seed").value.trim();
  if (seed !== "") {
    if (!/^[0-9]+$/.test(seed) || BigInt(seed) >= SEEDS) {
      throw new Refused(`The seed must be a whole number from 1 to ${SEEDS - 1n}, or empty for another each time.`, { param: "seed" });
    }
    if (BigInt(seed) !== 0n) settings.seed = BigInt(seed);
  }
  return settings;
}

function settingsOf(entry) {
  return { prompt: entry.prompt, size: entry.size, steps: entry.weave.steps, cfg_scale: cfgScale(entry), seed: entry.weave.seed };
}

// ---- Drawing.

// How far a request is: in a sentence, for the tab's title, and how much of the bar that is. `request` is the gateway's
// word on this one; nothing is said of it while a cloud makes it, or if the image server doesn't tell.
function progress({ daemon, request }) {
  const { before, step, steps } = request ?? {};
  if (typeof before === "number") {
    return before === 0 ? { text: "Next in the queue", short: "next" }
      : { text: `In the queue, ${before} before yours`, short: `${before} before yours` };
  }
  if (steps) return { text: `Drawing, step ${step} of ${steps}`, short: `drawing ${step}/${steps}`, step, steps };
  if (typeof step === "number") return { text: "Drawing", short: "drawing" };
  if (daemon && !daemon.ready) return { text: "The image server isn't ready yet", short: "waiting" };
  return { text: "Under way", short: "drawing" };
}

// Tells how far the request of this name is until `over`: the seconds always, aloud only what has changed, and seldom.
function watch(name, which, over) {
  const began = performance.now();
  const watched = { isDrawing: false };
  let said = "";
  const tell = ({ text, short, step, steps }) => {
    watched.isDrawing = Boolean(steps);
    if (steps) [$("progress").max, $("progress").value] = [steps, step];
    else $("progress").removeAttribute("value");
    said = `${which}${text}`;
    if ($("state").textContent !== said) $("state").textContent = said;
    title(short);
  };
  const tick = () => ($("elapsed").textContent = `${Math.floor((performance.now() - began) / 1000)} s`);
  const look = async () => {
    const status = await json(`/status?request=${name}`, { signal: over });
    if (!over.aborted) tell(progress(status));
  };
  tell({ text: "Sent", short: "drawing" });
  news(`${which}Drawing begins.`);
  tick();
  const ticks = setInterval(tick, 1000);
  // Without an answer the last one stands.
  const looks = setInterval(() => look().catch(() => {}), 700);
  const sayings = setInterval(() => news(`${said}, ${$("elapsed").textContent}`), 15000);
  over.addEventListener("abort", () => [ticks, looks, sayings].forEach(clearInterval));
  return watched;
}

// What to tell of an error, in words that help whoever looks at the page.
async function explain(error, wasDrawing) {
  if (!(error instanceof Refused)) return "This page's own server, the gateway, doesn't answer. Once it runs again, draw again.";
  if (error.status === undefined || error.status === 400) return error.message;
  switch (error.code) {
    case "unavailable": {
      const { available } = await greet().catch(() => ({}));
      if (wasDrawing && available) return "The image server was restarted while it was drawing your image. Draw it again.";
      if (wasDrawing) return "The image server has ended while it was drawing your image. Once it runs again, draw it again.";
      if (available === false) return "Nothing was drawn, since the image server isn't running.";
      return "No image can be taken on at the moment. Try again in a few seconds.";
    }
    case "busy": {
      const when = error.retryAfter ? `in about ${error.retryAfter} s` : "later";
      return `There are more images under way than the server takes at a time. Try again ${when}.`;
    }
    case "timeout":
      return "The image took longer than the server allows. A smaller size or fewer steps take less time.";
    case "out_of_memory":
      return "The image server lacks memory for this image. A smaller size takes less.";
    case "request_refused":
      return error.message;
    default:
      return error.status >= 500
        ? "The image could not be drawn. The server's log says why." : error.message;
  }
}

async function drawOne(settings, which, stop) {
  const over = new AbortController();
  const name = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const { seed, ...rest } = settings;
  // A seed as it is: a number of JavaScript's would lose the last digits of a large one.
  const body = JSON.stringify(rest).replace(/\}$/, seed === undefined ? "}" : `,"seed":${seed}}`);
  const watched = watch(name, which, over.signal);
  const began = performance.now();
  try {
    const headers = { "content-type": "application/json", "x-weave-request": name };
    const answer = await json("/v1/images/generations", { method: "POST", body, signal: stop, headers });
    const [{ b64_json: file, weave }] = answer.data;
    const bytes = Uint8Array.from(atob(file), (char) => char.charCodeAt(0));
    // Numbers beyond what JavaScript can count would be wrong ones.
    if (weave.seed !== undefined) weave.seed = String(seed ?? weave.seed_text ?? weave.seed);
    const entry = {
      blob: new Blob([bytes], { type: "image/png" }), prompt: settings.prompt, size: answer.size ?? settings.size, weave,
      model: weave.provider === "local" ? model?.name : undefined,
      seconds: (performance.now() - began) / 1000, at: Date.now(),
    };
    // Without a place to keep it, it is shown all the same.
    await keep(entry).catch(() => {});
    show(entry);
    await showHistory().catch(() => {});
    return entry;
  } catch (error) {
    error.wasDrawing = watched.isDrawing;
    throw error;
  } finally {
    over.abort();
  }
}

// So many images, with seeds that follow each other if there is one.
async function draw(ask, count = 1) {
  problem("");
  forgetRemoved();
  $("stopped").hidden = true;
  let settings;
  try {
    settings = ask();
  } catch (error) {
    return fail(error);
  }
  const stop = new AbortController();
  running = stop;
  $("draw").disabled = $("same").disabled = true;
  $("waiting").hidden = false;
  $("nothing").hidden = true;
  toView($("view"));
  let entry = null;
  try {
    for (let at = 1; at <= count; at += 1) {
      entry = await drawOne(settings, count > 1 ? `Image ${at} of ${count}. ` : "", stop.signal);
      if (settings.seed !== undefined) settings.seed = settings.seed + 1n < SEEDS ? settings.seed + 1n : 1n;
    }
    news(`Done, after ${entry.seconds.toFixed(1)} seconds.`);
    title(document.hasFocus() ? "" : "done");
    if ($("lock").checked && $("seed").value.trim() === "" && entry.weave.seed !== undefined) use({ seed: String(entry.weave.seed) });
  } catch (error) {
    title("");
    $("stopped").hidden = !stop.signal.aborted;
    if (stop.signal.aborted) news("Stopped.");
    else await fail(error);
  } finally {
    running = null;
    const isOnStop = document.activeElement === $("stop") || document.activeElement === document.body;
    $("draw").disabled = $("same").disabled = false;
    $("waiting").hidden = true;
    $("nothing").hidden = Boolean(current) || stop.signal.aborted;
    if (isOnStop) $("draw").focus({ preventScroll: true });
    if (entry) toView($("figure"));
  }
}

async function fail(error) {
  if (error.status === 401) {
    $("token-field").hidden = false;
    return problem("The token is missing or wrong.", "token");
  }
  const field = error.param === "size" && $("size").value === "other" ? "width" : error.param === "cfg" ? "cfg_scale" : error.param;
  problem(await explain(error, error.wasDrawing), field);
  if (!field) toView($("problem"));
}

// ---- Settings out of a PNG file: its text "parameters", as Weave and other programs write it.

const TEXTS = { tEXt: new TextDecoder("latin1"), iTXt: new TextDecoder() };

// The text, or undefined. Chunks that a file claims to have are looked for no further than it goes.
function parametersOf(buffer) {
  const view = new DataView(buffer);
  if (buffer.byteLength < 8 || view.getBigUint64(0) !== 0x89504e470d0a1a0an) return undefined;
  for (let at = 8; at + 12 <= buffer.byteLength;) {
    const length = view.getUint32(at);
    const kind = TEXTS.tEXt.decode(new Uint8Array(buffer, at + 4, 4));
    if (TEXTS[kind] && at + 12 + length <= buffer.byteLength) {
      const [keyword, ...rest] = TEXTS[kind].decode(new Uint8Array(buffer, at + 8, length)).split("\0");
      // iTXt: not compressed, then language and translated keyword, which are empty.
      if (keyword === "parameters") return kind === "tEXt" ? rest.join("\0") : rest.slice(-1)[0];
    }
    at += 12 + length;
  }
  return undefined;
}

// Settings from that text: the prompt, maybe one of what not to draw, and a line of settings.
function settingsIn(text) {
  const lines = text.split("\n");
  const line = lines.length > 1 && /^(Steps|Size): /.test(lines.at(-1)) ? lines.pop() : "";
  const negative = lines.findIndex((one) => one.startsWith("Negative prompt: "));
  const of = (name, pattern) => line.match(`(?:^|, )${name}: (${pattern})(?:,|$)`)?.[1];
  return {
    prompt: lines.slice(0, negative < 0 ? lines.length : negative).join("\n"),
    size: of("Size", "[0-9]{1,5}x[0-9]{1,5}"), steps: of("Steps", "[0-9]{1,5}"), cfg_scale: of("CFG scale", "[0-9.]{1,9}"),
    seed: of("Seed", "[0-9]{1,20}"),
  };
}

async function open(file) {
  problem("");
  const text = file.size <= MOST_FILE ? parametersOf(await file.arrayBuffer()) : undefined;
  if (text === undefined) return problem(`${file.name} doesn't say how it was drawn: it is no PNG file, or its settings were removed.`);
  use(settingsIn(text));
  $("prompt").focus();
  return news(`The settings of ${file.name} are in the fields.`);
}

// ---- What can be done.

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) draw(wanted, Number($("count").value));
});
$("form").addEventListener("input", changed);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing && !$("large").open) running?.abort();
});
$("stop").addEventListener("click", () => running?.abort());
addEventListener("beforeunload", (event) => {
  if (running) event.preventDefault();
});
addEventListener("focus", () => {
  if (!running) title("");
});
$("token").addEventListener("change", () => {
  sessionStorage.setItem("token", $("token").value.trim());
  return greeting();
});
$("seed").addEventListener("input", () => ($("lock").checked = $("seed").value.trim() !== ""));
$("lock").addEventListener("change", () => {
  if (!$("lock").checked) use({ seed: "" });
  else if ($("seed").value.trim() === "" && current?.weave.seed !== undefined) use({ seed: String(current.weave.seed) });
});
$("toy-link").addEventListener("click", () => ($("help").open = true));

$("same").addEventListener("click", () => {
  const { seed, ...settings } = settingsOf(current);
  if (!running) draw(() => (seed === undefined ? settings : { ...settings, seed: BigInt(seed) }));
});
$("again").addEventListener("click", () => {
  const settings = settingsOf(current);
  use({ ...settings, seed: settings.seed ?? "" });
  $("prompt").focus();
});
$("enlarge").addEventListener("click", () => {
  [$("large-image").src, $("large-image").alt] = [$("image").src, $("image").alt];
  $("large").showModal();
  $("close").focus();
});
for (const id of ["close", "large-image"]) $(id).addEventListener("click", () => $("large").close());

function forgetRemoved() {
  removed = null;
  $("removed").hidden = true;
}

$("remove").addEventListener("click", async () => {
  removed = current;
  if (current.id !== undefined) await change((drawn) => drawn.delete(current.id));
  show((await entries())[0] ?? null);
  await showHistory();
  news("Removed.");
  $("removed").hidden = false;
  $("undo").focus();
});
$("undo").addEventListener("click", async () => {
  const entry = removed;
  forgetRemoved();
  await keep(entry);
  show(entry);
  await showHistory();
  news("It is back.");
  $("remove").focus();
});

async function clear(saying) {
  forgetRemoved();
  await change((drawn) => drawn.clear());
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
  sessionStorage.removeItem("form");
  return clear("Nothing is kept from now on.");
});
tabs.addEventListener("message", () => showHistory().catch(() => {}));

$("open").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async () => {
  if ($("file").files[0]) await open($("file").files[0]);
  $("file").value = "";
});
// Files alone: text goes where it is dropped.
const hasFile = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!hasFile(event)) return;
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  if (!hasFile(event)) return;
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
});

// ---- The beginning.

$("size").append(new Option("default", "auto"), ...SIZES.map((size) => new Option(times(size), size)), new Option("other…", "other"));
use({ size: "auto", ...kept() });
greeting();
entries().then((all) => {
  if (all.length > 0) show(all[0]);
  return showHistory();
}).catch(() => {});
