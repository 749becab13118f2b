// Drives a real browser over the page of a gateway (first argument), by keyboard where that is possible, and over that
// of one that wants a token (second and third argument) and of one without a daemon (fourth). WEAVE_SHOTS names a folder for
// pictures of it.
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";

const [url, locked, token, lonely] = process.argv.slice(2);
const browserPath = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
if (!browserPath) throw new Error("no Chromium here; please install it (Debian: chromium)");

let passed = 0;
let failed = 0;
function check(name, holds, detail = "") {
  if (holds) passed += 1;
  else {
    failed += 1;
    console.log(`FAILED: ${name} ${detail}`);
  }
}

const browser = await chromium.launch({
  executablePath: browserPath,
  args: [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
    // A name that somebody has made to point here, and one that the gateways go by.
    "--host-resolver-rules=MAP evil.example 127.0.0.1, MAP images.example 127.0.0.1",
  ],
});

async function open(address, options = {}) {
  const { answers, ...rest } = options;
  const context = await browser.newContext({ viewport: { width: 1200, height: 900 }, ...rest });
  const page = await context.newPage();
  page.setDefaultTimeout(20000);
  const seen = { requests: [], errors: [], console: [] };
  page.on("request", (request) => seen.requests.push(request.url()));
  page.on("pageerror", (error) => seen.errors.push(String(error)));
  page.on("console", (message) => seen.console.push(message.text()));
  // What a test has the gateway say.
  for (const [path, answer] of Object.entries(answers ?? {})) {
    await page.route(path, async (route) => {
      const { status = 200, headers = {}, ...body } = await answer(route.request());
      await route.fulfill({ status, headers, contentType: "application/json", body: JSON.stringify(body) }).catch(() => {});
    });
  }
  await page.goto(`${address}/`);
  return { page, seen };
}

const shot = async (page, name) => {
  if (process.env.WEAVE_SHOTS) await page.screenshot({ path: join(process.env.WEAVE_SHOTS, `${name}.png`), fullPage: true });
};
const focused = (page) => page.evaluate(() => document.activeElement.id || document.activeElement.tagName);
const done = (page) => page.waitForFunction(() => document.getElementById("draw").disabled === false);
const fact = (page, name) => page.evaluate((name) => {
  const term = [...document.querySelectorAll("#facts dt")].find((term) => term.textContent === name);
  return term?.nextElementSibling.textContent;
}, name);

// By keyboard alone: from the top, through all fields in the order in which they stand.
const { page, seen } = await open(url);
await page.waitForFunction(() => document.getElementById("steps").value !== "");
const sizes = await page.$$eval("#size option", (options) => options.map((option) => option.textContent));
check("the gateway's own settings are there", (await page.inputValue("#steps")) === "8" && (await page.inputValue("#cfg_scale")) === "1"
  && (await page.inputValue("#size")) === "auto" && sizes[0] === "default (128×128)", sizes[0]);
check("a toy is called one", /test pattern.*It can only draw/.test(await page.textContent("#toy-text")) && (await page.isVisible("#toy"))
  && (await page.textContent("#model")) === "", await page.textContent("#toy-text"));
check("the version is told", /^Weave \d+\.\d+/.test(await page.textContent("#version")), await page.textContent("#version"));
await page.click("#toy-link");
check("how to get a real model is explained", await page.isVisible("#help-model"));
await page.click("summary");
check("help can be closed", await page.isHidden("#help-model"));
check("nothing is said of a server that is there", await page.isHidden("#down"));
await page.evaluate(() => (document.activeElement.blur(), scrollTo(0, 0), getSelection().removeAllRanges()));
await page.focus("#toy-link");
const order = [];
for (let i = 0; i < 8; i += 1) {
  await page.keyboard.press("Tab");
  order.push(await focused(page));
}
check("the order of the fields", order.join() === "prompt,size,steps,cfg_scale,seed,lock,count,draw", order.join());
await page.focus("#prompt");
await page.keyboard.type("a cat");
await page.keyboard.press("Tab");
await page.selectOption("#size", "128x128");
await page.keyboard.press("Tab");
await page.keyboard.press("Control+a");
await page.keyboard.type("40");
await page.keyboard.press("Tab");
await page.keyboard.press("Control+a");
await page.keyboard.type("1.5");
await page.keyboard.press("Tab");
await page.keyboard.type("18446744073709551615");
check("a seed that is typed stays", await page.isChecked("#lock"));
await page.keyboard.press("Enter");
await page.waitForSelector("#waiting:not([hidden])");
await page.waitForFunction(() => /step \d+ of 40/.test(document.getElementById("state").textContent));
check("how long it takes is told", /^\d+ s$/.test(await page.textContent("#elapsed")));
check("the bar moves", await page.evaluate(() => document.getElementById("progress").position > 0));
check("the tab's title tells it", /^drawing \d+\/40 – Weave$/.test(await page.title()), await page.title());
await page.evaluate(() => (document.hasFocus = () => false));
await shot(page, "waiting");
await done(page);
await page.waitForSelector("#figure:not([hidden])");
check("the image is there", await page.evaluate(() => {
  const image = document.getElementById("image");
  return image.decode().then(() => image.naturalWidth === 128 && image.alt === "a cat");
}));
check("a tab that nobody looks at says when it is done", (await page.title()) === "done – Weave", await page.title());
await page.evaluate(() => (delete document.hasFocus, dispatchEvent(new Event("focus"))));
check("and not for longer", (await page.title()) === "Weave");
check("all parameters are told", (await fact(page, "Size")) === "128×128" && (await fact(page, "Steps")) === "40"
  && (await fact(page, "CFG scale")) === "1.5" && (await fact(page, "Model")) === "test pattern" && !(await fact(page, "Made by")));
check("a seed beyond JavaScript's numbers is right", (await fact(page, "Seed")) === "18446744073709551615", await fact(page, "Seed"));
check("the end is told aloud", /^Done, after/.test(await page.textContent("#news")));
const layout = await page.evaluate(() => {
  const top = (id) => {
    const range = document.createRange();
    range.selectNodeContents(document.getElementById(id));
    return range.getBoundingClientRect().top;
  };
  const field = document.getElementById("prompt");
  // What the ring around a field takes: its offset and its width.
  return { buttons: top("download") - top("same"), label: field.getBoundingClientRect().top - field.labels[0].getBoundingClientRect().bottom - 5 };
});
check("texts of buttons are on one line", layout.buttons === 0, layout.buttons);
check("the ring around a field leaves its label free", layout.label >= 0, layout.label);
await page.focus("#download");
const [download] = await Promise.all([page.waitForEvent("download"), page.keyboard.press("Enter")]);
const png = readFileSync(await download.path());
check("the download's name", download.suggestedFilename() === "weave-18446744073709551615.png", download.suggestedFilename());

// What is wrong is told, and where.
await page.fill("#steps", "101");
await page.focus("#prompt");
await page.keyboard.press("Control+Enter");
await page.waitForFunction(() => document.getElementById("problem").textContent !== "");
check("a problem names the field", (await page.textContent("#problem")) === "Steps must be a whole number from 1 to 100.", await page.textContent("#problem"));
check("and leads to it", (await focused(page)) === "steps" && (await page.getAttribute("#steps", "aria-invalid")) === "true");
await shot(page, "problem");
await page.fill("#steps", "100");
await page.fill("#seed", "1e3");
await page.click("#draw");
check("a seed that is none", (await page.textContent("#problem")).includes("whole number") && (await focused(page)) === "seed");

await page.uncheck("#lock");
check("a seed that isn't to stay goes", (await page.inputValue("#seed")) === "");
for (const [field, value, good, said] of [
  ["#steps", "1.5", "8", "Steps must be a whole number"], ["#cfg_scale", "20.5", "1", "CFG scale must be a number from 0 to 20."],
  ["#seed", "18446744073709551616", "", "The seed must be a whole number"], ["#prompt", "  ", "a cat", "Say what to draw."],
  ["#prompt", "é".repeat(1025), "a cat", "The prompt is too long by 2 bytes"],
]) {
  await page.fill(field, value);
  await page.click("#draw");
  check(`${field} ${value.slice(0, 9)} is refused`, (await page.textContent("#problem")).startsWith(said) && `#${await focused(page)}` === field,
    await page.textContent("#problem"));
  await page.fill(field, good);
}
await page.fill("#prompt", "é".repeat(1000));
check("how much room is left is told when there is little", (await page.textContent("#room")) === "Room for 48 of 2048 bytes.");
await page.fill("#prompt", "a cat");
check("and only then", await page.isHidden("#room"));

// A size of one's own.
check("other sizes are not asked for", (await page.isHidden("#width")) && (await page.isHidden("#height")));
await page.selectOption("#size", "other");
await page.fill("#width", "192");
await page.fill("#height", "100");
await page.click("#draw");
check("a side that none can be", (await page.textContent("#problem")) === "The height must be a multiple of 64 from 64 to 2048."
  && (await focused(page)) === "height", await page.textContent("#problem"));
await page.fill("#height", "64");
await page.fill("#steps", "1");
await page.click("#draw");
await done(page);
check("a size of one's own", (await fact(page, "Size")) === "192×64", await fact(page, "Size"));
await page.selectOption("#size", "auto");
await page.click("#remove");
await page.waitForSelector("#removed:not([hidden])");
await page.fill("#steps", "100");

// Stopping.
for (const key of ["Enter", "Escape"]) {
  await page.click("#draw");
  await page.waitForSelector("#stop:not([hidden])");
  check("the old problem is gone", (await page.textContent("#problem")) === "" && (await page.isHidden("#removed"))
    && (await page.isHidden("#stopped")));
  if (key === "Enter") await page.focus("#stop");
  await page.keyboard.press(key);
  await done(page);
  check(`${key}: it was stopped`, (await page.textContent("#news")) === "Stopped." && (await page.title()) === "Weave"
    && (await page.isVisible("#stopped")));
  check(`${key}: the focus is not lost`, (await focused(page)) === "draw", await focused(page));
}

// The history, also after the page was loaded anew.
const evil = "<img src=x onerror=document.title='evil'>";
await page.fill("#prompt", evil);
await page.fill("#steps", "1");
await page.click("#draw");
await done(page);
check("a prompt is no markup", (await page.textContent("#shown-prompt")) === evil && (await page.title()) === "Weave");
await page.selectOption("#count", "3");
await page.reload();
await page.waitForSelector("#history li:nth-child(2)");
check("what stood in the fields is there after a reload", (await page.inputValue("#prompt")) === evil && (await page.inputValue("#steps")) === "1"
  && (await page.inputValue("#count")) === "3" && (await page.inputValue("#cfg_scale")) === "1");
check("for this tab alone", !(await page.evaluate(() => JSON.stringify(localStorage))).includes("onerror"));
await page.selectOption("#count", "1");
check("the newest is shown", (await page.textContent("#shown-prompt")) === evil);
await page.focus("#history li:nth-child(2) button");
await page.keyboard.press("Enter");
check("an older one is shown", (await page.textContent("#shown-prompt")) === "a cat");
check("which of them is told",
  (await page.getAttribute("#history li:nth-child(2) button", "aria-current")) === "true"
  && (await page.getAttribute("#history li:nth-child(1) button", "aria-current")) === "false");
await page.click("#again");
check("its settings are used again", (await page.inputValue("#prompt")) === "a cat"
  && (await page.inputValue("#seed")) === "18446744073709551615" && (await page.inputValue("#steps")) === "40" && (await page.isChecked("#lock")));
await page.click("#enlarge");
check("it can be looked at large", (await page.isVisible("#large")) && (await page.evaluate(() => document.getElementById("large-image").clientHeight > 800)));
await shot(page, "large");
await page.keyboard.press("Escape");
check("and small again", await page.isHidden("#large"));
await page.click("#remove");
await page.waitForFunction(() => document.querySelectorAll("#history li").length === 1);
check("what was removed can come back", (await focused(page)) === "undo");
await page.keyboard.press("Enter");
await page.waitForFunction(() => document.querySelectorAll("#history li").length === 2);
check("in its old place", (await page.textContent("#shown-prompt")) === "a cat" && (await page.isHidden("#removed"))
  && (await page.getAttribute("#history li:nth-child(2) button", "aria-current")) === "true");

// Once more, with the same settings, whatever stands in the fields; and settings out of a file.
await page.fill("#prompt", "something else");
await page.uncheck("#lock");
await page.click("#same");
await page.waitForSelector("#history li:nth-child(3)");
await done(page);
check("the same again", (await page.textContent("#shown-prompt")) === "a cat" && (await fact(page, "Seed")) === "18446744073709551615"
  && (await page.inputValue("#prompt")) === "something else" && (await page.inputValue("#seed")) === "");
await page.setInputFiles("#file", { name: "cat.png", mimeType: "image/png", buffer: png });
await page.waitForFunction(() => document.getElementById("prompt").value === "a cat");
check("settings out of a file", (await page.inputValue("#seed")) === "18446744073709551615" && (await page.inputValue("#steps")) === "40"
  && (await page.inputValue("#cfg_scale")) === "1.5" && (await page.inputValue("#size")) === "128x128");
const chunk = (kind, text) => {
  const body = Buffer.from(text, kind === "tEXt" ? "latin1" : "utf8");
  const length = Buffer.alloc(4);
  length.writeUInt32BE(body.length);
  return Buffer.concat([length, Buffer.from(kind), body, Buffer.alloc(4)]);
};
const signature = png.subarray(0, 8);
const others = "a dog,\nSteps: are no settings here\nNegative prompt: a cat\nSteps: 7, Sampler: Euler, CFG scale: 3.5, Seed: 5, Size: 832x1216, Model: x";
const dropped = async (name, bytes) => {
  await page.fill("#prompt", "");
  const data = await page.evaluateHandle(([name, bytes]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
    return data;
  }, [name, [...bytes]]);
  await page.dispatchEvent("body", "drop", { dataTransfer: data });
  await page.waitForFunction(() => document.getElementById("prompt").value || document.getElementById("problem").textContent);
};
await dropped("dog.png", Buffer.concat([signature, chunk("tEXt", "Title\0A cat"), chunk("tEXt", `parameters\0${others}`)]));
check("settings out of another program's file", (await page.inputValue("#prompt")) === "a dog,\nSteps: are no settings here"
  && (await page.inputValue("#seed")) === "5" && (await page.inputValue("#size")) === "832x1216" && (await page.inputValue("#cfg_scale")) === "3.5"
  && (await page.inputValue("#steps")) === "7", await page.inputValue("#prompt"));
await dropped("ü.png", Buffer.concat([signature, chunk("iTXt", "parameters\0\0\0\0\0日本 \u{1f408}\nSize: 64x64")]));
check("a text beyond Latin letters", (await page.inputValue("#prompt")) === "日本 \u{1f408}" && (await page.inputValue("#size")) === "other");
for (const [what, bytes] of [
  ["no image", Buffer.from("hello")], ["one without settings", signature], ["one that is cut off", png.subarray(0, 60)],
  ["one that claims more than it has", Buffer.concat([signature, Buffer.from([0xff, 0xff, 0xff, 0xff]), Buffer.from("tEXtparameters\0x")])],
]) {
  await dropped("bad.png", bytes);
  check(`${what}: that is told`, (await page.textContent("#problem")).startsWith("bad.png doesn't say how"));
}
await page.fill("#prompt", "a cat");
await page.selectOption("#size", "auto");

// Several, one after the other.
await page.fill("#steps", "1");
await page.fill("#seed", "7");
await page.selectOption("#count", "2");
await page.click("#draw");
await page.waitForSelector("#history li:nth-child(5)");
await done(page);
check("several have seeds that follow each other", (await fact(page, "Seed")) === "8" && (await page.inputValue("#seed")) === "7");
await page.selectOption("#count", "1");
await page.uncheck("#lock");
await page.check("#lock");
check("the seed of the image that is shown can be kept", (await page.inputValue("#seed")) === "8");
await page.uncheck("#lock");

// Whoever leaves while it draws is asked.
await page.fill("#steps", "100");
await page.click("#draw");
await page.waitForFunction(() => /step/.test(document.getElementById("state").textContent));
const asked = page.waitForEvent("dialog");
const leaving = page.evaluate(() => location.reload());
const question = await asked;
check("whoever leaves while it draws is asked", question.type() === "beforeunload");
await question.dismiss();
await leaving.catch(() => {});
check("and it goes on", await page.isVisible("#waiting"));
await page.keyboard.press("Escape");
await done(page);
page.once("dialog", (dialog) => dialog.accept());
await page.click("#clear");
await page.waitForSelector("#history-section", { state: "hidden" });
check("nothing is left", (await page.isHidden("#figure")) && (await page.isVisible("#nothing")));

// Nothing is kept if somebody doesn't want that, and what was there is gone.
const stored = () => page.evaluate(() => new Promise((resolve) => {
  const opening = indexedDB.open("weave");
  opening.onsuccess = () => {
    const counting = opening.result.transaction("drawn").objectStore("drawn").count();
    counting.onsuccess = () => resolve(counting.result);
  };
}));
const drawOne = async (prompt) => {
  await page.fill("#prompt", prompt);
  await page.fill("#steps", "1");
  await page.click("#draw");
  await done(page);
  await page.waitForFunction((prompt) => document.getElementById("shown-prompt").textContent === prompt, prompt);
};
await drawOne("kept");
await page.waitForSelector("#history li");
check("it is kept", (await stored()) === 1);
page.once("dialog", (dialog) => dialog.dismiss());
await page.click("#keep");
await page.waitForFunction(() => document.getElementById("keep").checked);
check("who thinks again loses nothing", (await stored()) === 1);
page.once("dialog", (dialog) => dialog.accept());
await page.click("#keep");
await page.waitForSelector("#history-section", { state: "hidden" });
check("nor what stands in the fields", (await page.evaluate(() => sessionStorage.length)) === 0);
await drawOne("not kept");
check("nothing is kept", (await stored()) === 0 && (await page.isHidden("#history-section"))
  && (await page.evaluate(() => sessionStorage.length)) === 0);
check("an image that isn't kept can come back as well", await (async () => {
  await page.click("#remove");
  await page.waitForSelector("#figure", { state: "hidden" });
  await page.click("#undo");
  return page.waitForSelector("#figure:not([hidden])").then(() => true, () => false);
})());
await page.click("#remove");
await page.waitForSelector("#figure", { state: "hidden" });
await page.reload();
await page.waitForFunction(() => document.getElementById("size").options.length > 1);
check("the choice is kept", !(await page.isChecked("#keep")));
await page.click("#keep");
const tab = await page.context().newPage();
await tab.goto(`${url}/`);
await tab.waitForFunction(() => document.getElementById("steps").value !== "");
await drawOne("kept again");
await page.waitForSelector("#history li");
check("other tabs hear of it", await tab.waitForSelector("#history li").then(() => true, () => false));
await tab.close();
check("it is kept again", (await stored()) === 1);
page.once("dialog", (dialog) => dialog.accept());
await page.click("#clear");
await page.waitForSelector("#history-section", { state: "hidden" });

// For who doesn't see it: each control has a name, and what changes is announced.
const nameless = await page.evaluate(() => [...document.querySelectorAll("input, select, textarea, button, a")]
  .filter((element) => !(element.labels?.length || element.textContent.trim() || element.getAttribute("aria-label")))
  .map((element) => element.outerHTML));
check("each control has a name", nameless.length === 0, nameless.join());
check("news and problems are announced", (await page.getAttribute("#news", "role")) === "status"
  && (await page.getAttribute("#problem", "role")) === "alert" && (await page.getAttribute("html", "lang")) === "en");

// Nothing from elsewhere, and nothing that the policy had to stop.
const outside = seen.requests.filter((request) => !request.startsWith(url) && !request.startsWith("blob:") && !request.startsWith("data:"));
check("nothing is fetched from elsewhere", outside.length === 0, outside.join(" "));
check("no error in the page", seen.errors.length === 0, seen.errors.join("; "));
check("the policy has stopped nothing", !seen.console.some((line) => line.includes("Content Security Policy")), seen.console.join("; "));
const policy = (await (await fetch(url)).headers.get("content-security-policy")) ?? "";
check("nothing inline is allowed", policy.includes("default-src 'none'") && !policy.includes("unsafe"), policy);
const blocked = await page.evaluate(() => {
  const script = document.createElement("script");
  script.textContent = "document.title = 'evil'";
  document.body.append(script);
  return document.title;
});
check("and nothing inline runs", blocked === "Weave");

// Contrast of text to what lies behind it: 4.5 to 1 is what WCAG's level AA wants.
const contrasts = () => {
  const light = (color) => {
    const [red, green, blue] = color.match(/[\d.]+/g).map((part) => {
      const share = part / 255;
      return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const back = (element) => {
    for (; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor;
      if (!/, 0\)$/.test(color)) return color;
    }
    return "rgb(255, 255, 255)";
  };
  return Math.min(...["body", "#keep-hint", "#draw", "#prompt", "#problem", "#download", "#toy", "#toy-link"].map((name) => {
    const element = document.querySelector(name);
    const [a, b] = [light(getComputedStyle(element).color), light(back(element))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  }));
};

for (const [name, options] of [
  ["light", { colorScheme: "light" }],
  ["dark", { colorScheme: "dark" }],
  ["phone", { viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true }],
  ["phone-dark", { viewport: { width: 320, height: 640 }, isMobile: true, hasTouch: true, colorScheme: "dark" }],
]) {
  const { page } = await open(url, options);
  await page.fill("#prompt", "a lighthouse in a storm, oil on canvas");
  await page.fill("#steps", "1");
  for (let i = 0; i < 3; i += 1) {
    await page.click("#draw");
    await page.waitForSelector(`#history li:nth-child(${i + 1})`);
    await done(page);
  }
  if (options.isMobile) {
    check(`${name}: keys that aren't there are not spoken of`, await page.isHidden(".keys"));
    check(`${name}: the image is in sight`, await page.evaluate(() => {
      const { top, bottom } = document.getElementById("image").getBoundingClientRect();
      return top >= 0 && bottom <= innerHeight;
    }));
  }
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  check(`${name}: nothing sticks out`, wide <= 0, `${wide} pixels`);
  const low = await page.evaluate(contrasts);
  check(`${name}: text can be read`, low >= 4.5, low);
  if (options.hasTouch) {
    const small = await page.evaluate(() => [...document.querySelectorAll("button, input, select, textarea, a")]
      .filter((element) => element.offsetParent && element.getBoundingClientRect().height < 44).map((element) => element.id));
    check(`${name}: what is touched is large enough`, small.length === 0, small.join());
  }
  await shot(page, name);
  await page.context().close();
}

// Several at once: each hears of its own, not of what others have.
{
  const { page } = await open(url);
  await page.fill("#prompt", "in the queue");
  await page.fill("#steps", "40");
  const status = async () => (await (await fetch(`${url}/status`)).json()).daemon;
  const other = (n) => fetch(`${url}/v1/images/generations`, {
    method: "POST", headers: { "content-type": "application/json" },
    body: JSON.stringify({ prompt: `other ${n}`, steps: 60, size: "64x64" }),
  });
  const states = () => page.evaluate(() => {
    window.states = [];
    new MutationObserver(() => window.states.push(document.getElementById("state").textContent))
      .observe(document.getElementById("state"), { childList: true });
  });
  await states();
  const others = [1, 2].map(other);
  while ((await status()).waiting < 1);
  await page.click("#draw");
  await page.waitForFunction(() => document.getElementById("state").textContent === "In the queue, 1 before yours");
  check("the bar waits as well", await page.evaluate(() => document.getElementById("progress").position === -1));
  check("the tab's title tells the place", (await page.title()) === "1 before yours – Weave", await page.title());
  await shot(page, "queue");
  await page.waitForFunction(() => document.getElementById("state").textContent === "Next in the queue");
  await page.waitForFunction(() => /step \d+ of 40/.test(document.getElementById("state").textContent));
  // Somebody else waits now.
  others.push(other(3));
  while ((await status()).waiting < 1);
  await page.evaluate(() => (window.states = []));
  await page.waitForFunction(() => /step (2\d|3\d) of 40/.test(document.getElementById("state").textContent));
  const said = await page.evaluate(() => window.states);
  check("while it is drawn, it isn't told to wait", said.length > 0 && said.every((state) => /step \d+ of 40/.test(state)), said.join("; "));
  check("and the bar moves", await page.evaluate(() => document.getElementById("progress").position > 0.4));
  await done(page);
  await Promise.all(others);
  check("it has come out of the queue", (await page.textContent("#shown-prompt")) === "in the queue");
  const [took, waited] = [parseFloat(await fact(page, "Took")), parseFloat(await fact(page, "Waited"))];
  check("what the engine took, and the wait", took >= 2 && took < 6 && waited >= 1, `${took} ${waited}`);

  // Who has stopped keeps nobody waiting.
  await page.fill("#steps", "100");
  await page.click("#draw");
  await page.waitForFunction(() => /step \d+ of 100/.test(document.getElementById("state").textContent));
  await page.keyboard.press("Escape");
  await done(page);
  await page.fill("#steps", "1");
  await page.click("#draw");
  await page.waitForFunction(() => [...document.querySelectorAll("#facts dd")].some((detail) => detail.textContent === "1"));
  await done(page);
  check("what was stopped is over at once", !(await fact(page, "Waited")), await fact(page, "Waited"));
  await page.context().close();
}

// No daemon: known before anything is drawn, and in words for who can do nothing about a socket.
{
  const { page } = await open(lonely);
  await page.waitForSelector("#down:not(:empty)");
  check("no server: told at once, and what to do", (await page.textContent("#down")) === "The image server isn't running. To start it, run weaved in a terminal.");
  await page.fill("#prompt", "a cat");
  await page.click("#draw");
  await page.waitForSelector("#problem:not(:empty)");
  check("no server: and after Draw", (await page.textContent("#problem")) === "Nothing was drawn, since the image server isn't running.",
    await page.textContent("#problem"));
  const all = await page.evaluate(() => document.body.innerText);
  check("no server: no paths and no errors of the system", !/sock|os error|refused/i.test(all), all);
  check("no server: the prompt is still there", (await page.inputValue("#prompt")) === "a cat");
  await shot(page, "down");
  await page.context().close();
}

// Over a network without TLS, where browsers have less for pages to use, and to people who can start nothing there.
{
  const named = (address) => address.replace("127.0.0.1", "images.example");
  const { page, seen } = await open(named(lonely));
  await page.waitForSelector("#down:not(:empty)");
  check("elsewhere: whom to turn to", (await page.textContent("#down")) === "The image server isn't running. Whoever looks after it has to start it.");
  await page.goto(`${named(url)}/`);
  await page.fill("#prompt", "from elsewhere");
  await page.fill("#steps", "2");
  await page.click("#draw");
  await page.waitForSelector("#figure:not([hidden])");
  await done(page);
  check("elsewhere: it draws", (await page.textContent("#shown-prompt")) === "from elsewhere" && seen.errors.length === 0, seen.errors.join());
  await page.context().close();
}

// What only a server that goes wrong says, in this page's words.
{
  let status = { version: "1.2.3", available: false, model: null, daemon: null, request: null, defaults: { size: "512x512", steps: 28, cfg_scale: 7 } };
  let error = {};
  const { page } = await open(url, { answers: {
    "**/status*": () => status,
    "**/v1/images/generations": async () => {
      // After the page has seen how far it is.
      if (error.after) await new Promise((go) => (error.go = go));
      if (error.after) status = error.after;
      return { status: error.status, headers: error.headers, error: { message: "of no use at /run/x.sock (os error 2)", ...error } };
    },
  } });
  await page.waitForSelector("#down:not(:empty)");
  const real = { ...status, available: true, model: { name: "Stable Diffusion 3.5 Medium", toy: false, draws: null } };
  status = real;
  await page.waitForFunction(() => document.getElementById("down").textContent === "");
  check("a server that comes back is noticed", (await page.textContent("#news")) === "The image server is running again."
    && (await page.textContent("#model")) === "Draws with Stable Diffusion 3.5 Medium." && (await page.isHidden("#toy")));
  check("a hint that suits the model", (await page.getAttribute("#prompt", "placeholder")).includes("lighthouse"));
  await page.fill("#prompt", "a (cat:");
  for (const [given, said, field] of [
    [{ status: 503, code: "unavailable" }, "No image can be taken on at the moment."],
    [{ status: 429, code: "busy", headers: { "retry-after": "7" } }, "There are more images under way than the server takes at a time. Try again in about 7 s."],
    [{ status: 504, code: "timeout" }, "The image took longer than the server allows."],
    [{ status: 500, code: "out_of_memory" }, "The image server lacks memory"],
    [{ status: 500, code: "generation_failed" }, "The image could not be drawn. The server's log says why."],
    [{ status: 400, code: "invalid_value", param: "prompt", message: "the bracket at character 3 is not closed" },
      "the bracket at character 3 is not closed", "prompt"],
  ]) {
    error = given;
    await page.click("#draw");
    await page.waitForSelector("#problem:not(:empty)");
    const shown = await page.textContent("#problem");
    check(`${given.status} ${given.code} is explained`, shown.startsWith(said) && !shown.includes("/run"), shown);
    if (field) check("and leads to its field", (await focused(page)) === field);
  }
  const drawing = { ...real, request: { image: 0, images: 1, before: null, step: 3, steps: 8 } };
  for (const [after, said] of [[{ ...real, available: false }, "has ended while it was drawing"], [real, "was restarted while it was drawing"]]) {
    status = drawing;
    error = { status: 503, code: "unavailable", after };
    await page.click("#draw");
    await page.waitForFunction(() => document.title === "drawing 3/8 – Weave");
    error.go();
    await page.waitForSelector("#problem:not(:empty)");
    check(`a server that ${said}`, (await page.textContent("#problem")).includes(said), await page.textContent("#problem"));
  }
  // What it says of images.
  for (const [weave, told] of [
    [{ provider: "local", seed: 2 ** 64, seed_text: "18446744073709551615", steps: 4, cfg_scale: 3.5, model: "Large", generation_time_ms: 0 },
      { Seed: "18446744073709551615", Model: "Large", "CFG scale": "3.5", "Made by": undefined, Took: "0.0 s" }],
    [{ provider: "openai", model: "gpt-image-1", dropped: ["steps", "cfg_scale"] },
      { "Made by": "openai", Model: "gpt-image-1", Without: "steps, CFG scale", Seed: undefined }],
  ]) {
    await page.unroute("**/v1/images/generations");
    await page.route("**/v1/images/generations", (route) => route.fulfill({ json: { size: "128x128", data: [{ b64_json: png.toString("base64"), weave }] } }));
    await page.click("#draw");
    await page.waitForFunction((model) => document.getElementById("facts").textContent.includes(model), weave.model);
    await done(page);
    for (const [name, value] of Object.entries(told)) check(`${weave.provider}: ${name}`, (await fact(page, name)) === value, await fact(page, name));
  }
  await page.clock.install();
  await page.click("#draw");
  await page.waitForFunction(() => document.getElementById("news").textContent.startsWith("Done"));
  await page.clock.runFor(60000);
  check("what is done is spoken of no more", (await page.textContent("#news")).startsWith("Done"), await page.textContent("#news"));
  await page.clock.resume();
  await page.unroute("**/v1/images/generations");
  await page.route("**/v1/images/generations", (route) => route.abort());
  await page.click("#draw");
  await page.waitForSelector("#problem:not(:empty)");
  check("a gateway that is gone", (await page.textContent("#problem")).includes("the gateway, doesn't answer"), await page.textContent("#problem"));
  await page.context().close();
}

// A gateway that wants a token.
{
  const { page } = await open(locked);
  await page.waitForSelector("#token-field:not([hidden])");
  await page.fill("#prompt", "a cat");
  await page.fill("#token", "wrong");
  await page.click("#draw");
  await page.waitForFunction(() => document.getElementById("problem").textContent.includes("token"));
  check("a wrong token leads to its field", (await focused(page)) === "token");
  await shot(page, "token");
  await page.fill("#token", token);
  await page.focus("#prompt");
  await page.evaluate(() => document.getElementById("token").dispatchEvent(new Event("change")));
  await page.waitForFunction(() => document.getElementById("steps").value === "1");
  check("what suits the model comes with the token", (await page.textContent("#size option:first-child")) === "default (64×64)"
    && /^Weave/.test(await page.textContent("#version")));
  await page.focus("#token");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#figure:not([hidden])");
  check("what is left open is the gateway's to say", (await fact(page, "Size")) === "64×64" && (await fact(page, "Steps")) === "1");
  check("the token is not kept for good", !(await page.evaluate(() => JSON.stringify(localStorage))).includes(token));
  await page.context().close();
}

// Pages of others.
{
  const page = await (await browser.newContext()).newPage();
  const answer = await page.goto(`http://evil.example:${new URL(url).port}/`);
  check("a name that was made to point here", answer.status() === 403, answer.status());
  const asked = await page.evaluate((url) => fetch(`${url}/v1/images/generations`, {
    method: "POST", headers: { "content-type": "application/json" }, body: '{"prompt": "x", "size": "64x64"}',
  }).then((response) => `answered ${response.status}`, (error) => error.name), url);
  check("a page of another origin gets no answer", asked === "TypeError", asked);
  await page.context().close();
}

await browser.close();
console.log(`page: ${passed} passed, ${failed} failed`);
process.exitCode = failed ? 1 : 0;
