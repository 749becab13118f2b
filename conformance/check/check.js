// Checks reports against their schema, and drives a real browser over the page that `weave-conform matrix` makes of them.
// Arguments: weave-conform, and reports of it. Prints `N passed, N failed`.
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import Ajv from "ajv/dist/2020.js";
import { chromium } from "playwright-core";

const [conform, ...reports] = process.argv.slice(2);
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

const schema = JSON.parse(readFileSync(new URL("../report.schema.json", import.meta.url), "utf8"));
const validate = new Ajv({ allErrors: true }).compile(schema);
for (const path of reports) {
  check(`${path} is as the schema says`, validate(JSON.parse(readFileSync(path, "utf8"))), JSON.stringify(validate.errors));
}
check("a report without its cases is none", !validate({ suite: { name: "weave-conform", version: "0" } }));

const folder = mkdtempSync(join(tmpdir(), "weave-page-"));
try {
  // One more report, in which a case fails with words that would be markup if they were not escaped.
  const evil = "</script><b id=markup>bold</b>";
  const spoilt = JSON.parse(readFileSync(reports[0], "utf8"));
  spoilt.name = "spoilt";
  spoilt.conformant = false;
  Object.assign(spoilt.cases[3], {
    verdict: "fail",
    counts_against: true,
    failures: [{
      variant: "whole", requirement: "W1-HDR-001", sentence: "A sender MUST begin each frame with the magic.", problem: evil,
      expected: "the magic", sent: "57 45", received: "58", received_fields: "58   magic, cut short",
    }],
  });
  const failing = spoilt.cases[3];
  const spoiltPath = join(folder, "spoilt.json");
  writeFileSync(spoiltPath, JSON.stringify(spoilt));
  const pagePath = join(folder, "matrix.html");
  execFileSync(conform, ["matrix", ...reports, spoiltPath, "-o", pagePath]);
  const all = [...reports.map((path) => JSON.parse(readFileSync(path, "utf8"))), spoilt];
  const ids = new Set(all.flatMap((report) => report.cases.map((outcome) => outcome.id)));

  const browser = await chromium.launch({
    executablePath: browserPath,
    args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"],
  });
  const page = await browser.newPage();
  const requests = [];
  const errors = [];
  page.on("request", (request) => requests.push(request.url()));
  page.on("pageerror", (error) => errors.push(String(error)));
  await page.goto(pathToFileURL(pagePath).href);

  const rows = () => page.locator("#body tr").count();
  const first = (column) => page.locator("#body tr").first().locator("td").nth(column).textContent();
  const header = (column) => page.locator("#head th button").nth(column).click();
  check("needs no other file", requests.length === 1, requests.join(" "));
  check("a row for each case", (await rows()) === ids.size, `${await rows()} of ${ids.size}`);
  check("a column for each report", (await page.locator("#head th").count()) === 3 + all.length);
  check("the count is told", (await page.locator("#count").textContent()) === `${ids.size} of ${ids.size} cases`);

  const sortedIds = [...ids].sort();
  check("sorted by case at first", (await first(0)) === sortedIds[0]);
  await header(0);
  check("a second click turns the order round", (await first(0)) === sortedIds.at(-1));
  await header(2 + all.length);
  await header(2 + all.length);
  check("sorted by a run's verdict, the worst first", (await first(0)) === failing.id, await first(0));
  check("the order is announced",
    (await page.locator("#head th").nth(2 + all.length).getAttribute("aria-sort")) === "descending");

  await page.fill("#search", failing.id.toLowerCase());
  check("the search finds a case", (await rows()) === 1 && (await first(0)) === failing.id);
  await page.locator("#body tr td").nth(2 + all.length).locator("button").click();
  const details = page.locator("#details");
  check("a click shows the details", await details.isVisible());
  const text = await details.textContent();
  for (const part of [evil, failing.failures[0].sentence, "57 45", "magic, cut short"]) {
    check(`the details have ${part}`, text.includes(part));
  }
  check("a report's words are no markup", (await page.locator("#markup").count()) === 0);
  await details.locator("button").click();
  check("the details close", !(await details.isVisible()));

  await page.fill("#search", "");
  await page.check("#bad");
  const imperfect = [...ids].filter((id) =>
    all.some((report) => report.cases.some((outcome) => outcome.id === id && outcome.verdict !== "pass")));
  check("only what does not pass everywhere", (await rows()) === imperfect.length, `${await rows()} of ${imperfect.length}`);
  await page.fill("#search", "no case has these words");
  check("nothing found is nothing shown", (await rows()) === 0);
  check("no error in the page", errors.length === 0, errors.join("; "));
  await browser.close();
} finally {
  rmSync(folder, { recursive: true, force: true });
}
console.log(`reports and page: ${passed} passed, ${failed} failed`);
process.exitCode = failed ? 1 : 0;
