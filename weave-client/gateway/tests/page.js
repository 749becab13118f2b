// Drives a real browser over the page of a gateway (first argument), by keyboard where that is possible, and over that
// of one that wants a token (second and third argument). WEAVE_SHOTS names a folder for pictures of it.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";

const [url, locked, token] = process.argv.slice(2);
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
    // A name that somebody has made to point here.
    "--host-resolver-rules=MAP evil.example 127.0.0.1",
  ],
});

async function open(address, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1200, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(20000);
  const seen = { requests: [], errors: [], console: [] };
  page.on("request", (request) => seen.requests.push(request.url()));
  page.on("pageerror", (error) => seen.errors.push(String(error)));
  page.on("console", (message) => seen.console.push(message.text()));
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
check("the gateway's own settings are there", (await page.inputValue("#size")) === "128x128", await page.inputValue("#size"));
const order = [];
for (let i = 0; i < 6; i += 1) {
  await page.keyboard.press("Tab");
  order.push(await focused(page));
}
check("the order of the fields", order.join() === "prompt,size,steps,cfg,seed,draw", order.join());
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
await page.keyboard.press("Enter");
await page.waitForSelector("#waiting:not([hidden])");
await page.waitForFunction(() => /step \d+ of 40/.test(document.getElementById("state").textContent));
check("how long it takes is told", /^\d+ s$/.test(await page.textContent("#elapsed")));
check("the bar moves", await page.evaluate(() => document.getElementById("progress").position > 0));
await shot(page, "waiting");
await done(page);
await page.waitForSelector("#figure:not([hidden])");
check("the image is there", await page.evaluate(() => {
  const image = document.getElementById("image");
  return image.decode().then(() => image.naturalWidth === 128 && image.alt === "a cat");
}));
check("all parameters are told", (await fact(page, "Size")) === "128×128" && (await fact(page, "Steps")) === "40"
  && (await fact(page, "CFG")) === "1.5" && (await fact(page, "Made by")) === "local");
check("a seed beyond JavaScript's numbers is right", (await fact(page, "Seed")) === "18446744073709551615", await fact(page, "Seed"));
check("the end is told aloud", /^Done, after/.test(await page.textContent("#news")));
await page.focus("#download");
const [download] = await Promise.all([page.waitForEvent("download"), page.keyboard.press("Enter")]);
check("the download's name", download.suggestedFilename() === "weave-18446744073709551615.png", download.suggestedFilename());

// What is wrong is told, and where.
await page.fill("#steps", "101");
await page.focus("#prompt");
await page.keyboard.press("Control+Enter");
await page.waitForFunction(() => document.getElementById("problem").textContent !== "");
check("a problem names the field", (await page.textContent("#problem")).includes("steps is 101"), await page.textContent("#problem"));
check("and leads to it", (await focused(page)) === "steps" && (await page.getAttribute("#steps", "aria-invalid")) === "true");
await shot(page, "problem");
await page.fill("#steps", "100");
await page.fill("#seed", "1e3");
await page.click("#draw");
check("a seed that is none", (await page.textContent("#problem")).includes("whole number") && (await focused(page)) === "seed");

// Stopping.
await page.fill("#seed", "");
await page.click("#draw");
await page.waitForSelector("#stop:not([hidden])");
check("the old problem is gone", (await page.textContent("#problem")) === "");
await page.focus("#stop");
await page.keyboard.press("Enter");
await done(page);
check("it was stopped", (await page.textContent("#news")) === "Stopped.");
check("the focus is not lost", (await focused(page)) === "draw", await focused(page));

// The history, also after the page was loaded anew.
const evil = "<img src=x onerror=document.title='evil'>";
await page.fill("#prompt", evil);
await page.fill("#steps", "1");
await page.click("#draw");
await done(page);
check("a prompt is no markup", (await page.textContent("#shown-prompt")) === evil && (await page.title()) === "Weave");
await page.reload();
await page.waitForSelector("#history li:nth-child(2)");
check("the newest is shown", (await page.textContent("#shown-prompt")) === evil);
await page.focus("#history li:nth-child(2) button");
await page.keyboard.press("Enter");
check("an older one is shown", (await page.textContent("#shown-prompt")) === "a cat");
check("which of them is told",
  (await page.getAttribute("#history li:nth-child(2) button", "aria-current")) === "true"
  && (await page.getAttribute("#history li:nth-child(1) button", "aria-current")) === "false");
await page.click("#again");
check("its settings are used again", (await page.inputValue("#prompt")) === "a cat"
  && (await page.inputValue("#seed")) === "18446744073709551615" && (await page.inputValue("#steps")) === "40");
await page.click("#remove");
await page.waitForFunction(() => document.querySelectorAll("#history li").length === 1);
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
await drawOne("not kept");
check("nothing is kept", (await stored()) === 0 && (await page.isHidden("#history-section")));
await page.click("#remove");
await page.waitForSelector("#figure", { state: "hidden" });
await page.reload();
await page.waitForFunction(() => document.getElementById("size").options.length > 1);
check("the choice is kept", !(await page.isChecked("#keep")));
await page.click("#keep");
await drawOne("kept again");
await page.waitForSelector("#history li");
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
  return Math.min(...["body", ".hint", "#draw", "#prompt", "#problem", "#download"].map((name) => {
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

// Several at once: the queue is told.
{
  const { page } = await open(url);
  await page.fill("#prompt", "in the queue");
  await page.fill("#steps", "40");
  const others = [1, 2].map((n) => fetch(`${url}/v1/images/generations`, {
    method: "POST", headers: { "content-type": "application/json" },
    body: JSON.stringify({ prompt: `other ${n}`, steps: 60, size: "64x64" }),
  }));
  for (let waiting = 0; waiting < 1;) waiting = (await (await fetch(`${url}/status`)).json()).daemon.waiting;
  await page.click("#draw");
  await page.waitForFunction(() => /queue/.test(document.getElementById("state").textContent));
  await shot(page, "queue");
  await done(page);
  await Promise.all(others);
  check("it has come out of the queue", (await page.textContent("#shown-prompt")) === "in the queue");
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
