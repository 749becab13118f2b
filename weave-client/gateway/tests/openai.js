// OpenAI's client for JavaScript against a gateway with a daemon (first argument) and one without (second).
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const [url, lonely] = process.argv.slice(2);
const client = (baseURL) => new OpenAI({ baseURL: `${baseURL}/v1`, apiKey: "unused", maxRetries: 0 });

test("an image", async () => {
  const answer = await client(url).images.generate({
    model: "sd3.5", prompt: "a cat", n: 2, size: "64x128", response_format: "b64_json", seed: 7, steps: 2, cfg_scale: 1,
  });
  assert.equal(answer.data.length, 2);
  assert.deepEqual(answer.data.map((image) => image.weave.seed), [7, 8]);
  const png = Buffer.from(answer.data[0].b64_json, "base64");
  assert.equal(png.toString("latin1", 1, 4), "PNG");
  assert.deepEqual([png.readUInt32BE(16), png.readUInt32BE(20)], [64, 128]);
});

test("the models", async () => {
  const names = [];
  for await (const model of client(url).models.list()) names.push(model.id);
  assert.equal(names.at(-1), "sd3.5");
  await assert.rejects(client(url).models.retrieve("dall-e-3"), OpenAI.NotFoundError);
});

test("a request that is wrong", async () => {
  await assert.rejects(client(url).images.generate({ prompt: "a cat", background: "transparent" }), (error) => {
    assert(error instanceof OpenAI.BadRequestError);
    assert.deepEqual([error.param, error.code, error.type], ["background", "unsupported_parameter", "invalid_request_error"]);
    return true;
  });
});

test("no daemon", async () => {
  await assert.rejects(client(lonely).images.generate({ prompt: "a cat" }), (error) => {
    assert(error instanceof OpenAI.InternalServerError);
    assert.equal(error.status, 503);
    return true;
  });
});

test("who gives up is heard of", async () => {
  const stop = new AbortController();
  setTimeout(() => stop.abort(), 100);
  await assert.rejects(
    client(url).images.generate({ prompt: "slow", steps: 100, size: "64x64" }, { signal: stop.signal }), OpenAI.APIUserAbortError);
});
