/** The client for programs, against servers made for that, and against real ones: WEAVED=path/to/weaved WEAVE=path/to/weave. */

import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, test, type TestContext } from "node:test";
import { promisify } from "node:util";
import { inflateSync } from "node:zlib";
import { Client, defaultAddress, NoImage, Unreachable } from "./image-client.js";
import { Image } from "./image.js";
import { encodeError, encodeResponseHead, ErrorCode, ProtocolError, RequestError, ServerReader, type Request } from "./weave.js";

const folder = mkdtempSync(join(tmpdir(), "weave-"));
after(() => rmSync(folder, { recursive: true }));
const limit = { timeout: 60_000 };
const small = { width: 128, height: 64, steps: 3, cfgScale: 1.1 };

function image(requestId: bigint): Uint8Array {
  const head = encodeResponseHead({ requestId, generationTimeMs: 5, imageWidth: 128, imageHeight: 64, channels: 3 });
  return Buffer.concat([head, Buffer.alloc(128 * 64 * 3, "rgb")]);
}

let sockets = 0;
/** A server whose connections are served one after the other: each gets the socket, and a promise for its next request. */
async function fake(t: TestContext, serve: (socket: Socket, next: () => Promise<Request>, index: number) => Promise<void>): Promise<string> {
  const path = join(folder, `${(sockets += 1)}.sock`);
  let index = 0;
  const server = createServer((socket) => {
    socket.on("error", () => socket.destroy());
    const reader = new ServerReader();
    const requests: Request[] = [];
    const waiting: ((request: Request) => void)[] = [];
    socket.on("data", (chunk) => {
      for (const question of reader.read(chunk)) {
        assert(question.kind === "request");
        const first = waiting.shift();
        if (first === undefined) requests.push(question);
        else first(question);
      }
    });
    const next = (): Promise<Request> => {
      const there = requests.shift();
      return there === undefined ? new Promise((resolve) => waiting.push(resolve)) : Promise.resolve(there);
    };
    void serve(socket, next, index++).then(() => socket.end());
  });
  server.listen(path);
  await once(server, "listening");
  t.after(() => server.close());
  return path;
}

/** The texts of a PNG file, each with its chunk's kind and keyword, without the model's name, which the protocol doesn't tell. */
function texts(png: Uint8Array): string[] {
  const found: string[] = [];
  const file = Buffer.from(png);
  for (let at = 8; at < file.length; at += 12 + file.readUInt32BE(at)) {
    const kind = file.toString("latin1", at + 4, at + 8);
    const data = file.subarray(at + 8, at + 8 + file.readUInt32BE(at));
    if (kind === "tEXt" || kind === "iTXt") found.push(`${kind} ${data.toString(kind === "tEXt" ? "latin1" : "utf8")}`);
  }
  return found.map((text) => text.replace(/Model: [^,]*, |,"model":"[^"]*"/, ""));
}

test("a closed connection is replaced, and a request is sent again at most once", limit, async (t) => {
  const heard: Request[][] = [];
  let say: () => void = () => undefined;
  const answered = new Promise<void>((resolve) => (say = resolve));
  let tell: () => void = () => undefined;
  const gone = new Promise<void>((resolve) => (tell = resolve));
  // What it answers on each connection; undefined: it reads a request and closes.
  const scripts = [[image(1n)], [image(2n), undefined], [image(3n), undefined], [undefined], [image(5n), image(6n).subarray(0, 9)]];
  const address = await fake(t, async (socket, next, index) => {
    const requests: Request[] = (heard[index] = []);
    for (const answer of scripts[index] ?? []) {
      requests.push(await next());
      if (answer !== undefined) socket.write(answer);
    }
    if (index > 0) return;
    await answered;
    socket.write(encodeError(0n, ErrorCode.SHUTTING_DOWN, "ending")); // which is no answer to what comes next
    socket.end(tell);
  });
  const client = new Client(address);
  const ask = (): Promise<Image> => client.generate("x", small);
  const first = await ask();
  assert(first.seed > 0n && first.seed < 2n ** 32n);
  assert.equal(first.seed, heard[0]?.[0]?.seed);
  say();
  await gone; // closed while idle
  assert.notEqual((await ask()).seed, first.seed);
  await ask(); // closed as the request comes: the same once more
  await assert.rejects(ask(), /closed the connection before its answer/); // closed as it comes, and again
  await ask();
  await assert.rejects(ask(), /in the middle of its answer/); // something of an answer had come
  client.close();
  assert.deepEqual(heard.map((requests) => requests.length), [1, 2, 2, 1, 2]);
  assert.deepEqual(heard[1]?.[1], heard[2]?.[0]);
  assert.deepEqual(heard[2]?.[1], heard[3]?.[0]);
});

test("what is wrong is told apart", limit, async (t) => {
  const other = encodeResponseHead({ requestId: 1n, generationTimeMs: 5, imageWidth: 64, imageHeight: 64, channels: 3 });
  const answers: [Uint8Array, (fault: unknown) => boolean][] = [
    [encodeError(1n, ErrorCode.GPU_ERROR, "on \x1bfire"), (f) => f instanceof NoImage && f.code === 9 && f.status === 500 && f.message === "GPU_ERROR: on \\u{1b}fire"],
    [encodeError(0n, ErrorCode.BUSY, "full"), (f) => f instanceof NoImage && f.code === ErrorCode.BUSY],
    [image(2n), (f) => f instanceof ProtocolError && f.requirement === "W1-CON-002"],
    [other, (f) => f instanceof Error && f.message.includes("in the middle")],
    [Buffer.concat([other, Buffer.alloc(64 * 64 * 3)]), (f) => f instanceof ProtocolError && f.requirement === "W1-RSP-002"],
    [Buffer.from("HTTP/1.1 400 Bad"), (f) => f instanceof ProtocolError && f.requirement === "W1-FRM-006"],
  ];
  for (const [answer, isWhy] of answers) {
    const address = await fake(t, async (socket, next) => {
      await next();
      socket.write(answer);
    });
    const client = new Client(address);
    await assert.rejects(client.generate("x", small), isWhy);
    client.close();
  }
  const nowhere = join(folder, "nowhere");
  const nobody = new Client(nowhere);
  await assert.rejects(nobody.generate("x"), (fault: unknown) => {
    const text = `no server answers at ${nowhere} (nothing is there); start weaved, or name the address of one that runs`;
    return fault instanceof Unreachable && fault.message === text;
  });
  const denied = new Unreachable("/a", Object.assign(new Error(), { code: "EACCES" }));
  assert.match(denied.message, /\(permission denied\); only some users may connect there/);
  for (const [prompt, text] of [["", /the prompt is empty; it must have 1 to 2048 bytes/], ["é".repeat(1025), /the prompt has 2050 bytes; it must/], ["\0", /a byte 0/], ["\ud800", /half of a character/]] as const) {
    await assert.rejects(nobody.generate(prompt), (fault: unknown) => fault instanceof RequestError && fault.field === "prompt" && text.test(fault.message));
  }
  await assert.rejects(nobody.generate("x", { width: 65 }), /width is 65/);
});

test("a call that is aborted closes its connection", limit, async (t) => {
  let closed: () => void = () => undefined;
  const gone = new Promise<void>((resolve) => (closed = resolve));
  const stop = new AbortController();
  const address = await fake(t, async (socket, next) => {
    await next();
    socket.once("close", closed);
    stop.abort(new Error("enough"));
    await gone;
  });
  await assert.rejects(new Client(address).generate("x", { ...small, signal: stop.signal }), /enough/);
  await gone;
  await assert.rejects(new Client(address).generate("x", { signal: stop.signal }), /enough/);
});

test("where clients look", limit, () => {
  const there = join(folder, "system.sock");
  writeFileSync(there, "");
  mkdirSync(join(folder, "weave"));
  writeFileSync(join(folder, "weave/weave.sock"), "");
  for (const [env, system, address] of [
    [{ WEAVE_SOCKET: "/a", XDG_RUNTIME_DIR: "/r" }, there, "/a"],
    [{ XDG_RUNTIME_DIR: "/r" }, "/none", "/r/weave/weave.sock"],
    [{ WEAVE_SOCKET: " ", XDG_RUNTIME_DIR: "relative", HOME: "/h" }, "/none", "/h/.weave/weave.sock"],
    [{ HOME: "/h" }, "/none", "/h/.weave/weave.sock"],
    [{ WEAVE_SOCKET: " /a\n" }, "/none", "/a"],
    [{}, there, there],
    [{ HOME: "/" }, there, there],
    [{ HOME: "/h" }, there, there], // if nothing is there, the one for all users
    [{ XDG_RUNTIME_DIR: "/r" }, there, there],
    [{ XDG_RUNTIME_DIR: folder }, there, join(folder, "weave/weave.sock")],
  ] as const) {
    assert.equal(defaultAddress(env, system), address);
  }
  for (const env of [{}, { HOME: "/" }, { HOME: "relative" }]) {
    assert.throws(() => defaultAddress(env, "/none"), /WEAVE_SOCKET, XDG_RUNTIME_DIR and HOME say nothing/);
  }
});

test("a file says how its image was made, and is there complete or as it was", limit, async () => {
  const pixels = Buffer.from(Array.from({ length: 128 * 64 * 3 }, (_, i) => i % 251));
  const made = { prompt: "a cat", steps: 28, cfgScale: 7, seed: 2n ** 64n - 2n };
  const cat = new Image(made, { width: 128, height: 64, channels: 3, pixels, generationTimeMs: 5 });
  assert.deepEqual(texts(cat.png()), [
    "tEXt parameters\0a cat\nSteps: 28, Sampler: unknown, CFG scale: 7, Seed: 18446744073709551614, Size: 128x64, Version: Weave 0.1.0",
    'tEXt Weave\0{"protocol":1,"model_id":0,"prompt":"a cat","width":128,"height":64,"steps":28,"cfg_scale":7.0,"seed":18446744073709551614,"provider":"local"}',
  ]);
  const png = Buffer.from(cat.png());
  const at = png.indexOf("IDAT");
  const rows = inflateSync(png.subarray(at + 4, at + 4 + png.readUInt32BE(at - 4)));
  for (let y = 0; y < 64; y += 1) {
    assert(rows.subarray(y * 385 + 1, (y + 1) * 385).equals(pixels.subarray(y * 384, (y + 1) * 384)));
  }

  const inside = mkdtempSync(join(folder, "save-"));
  writeFileSync(join(inside, "old.png"), "old");
  chmodSync(join(inside, "old.png"), 0o600);
  symlinkSync("old.png", join(inside, "link.png"));
  mkdirSync(join(inside, "folder.png"));
  await cat.save(join(inside, "link.png"));
  await cat.save(join(inside, "new.png"));
  assert(readFileSync(join(inside, "old.png")).equals(png) && readFileSync(join(inside, "new.png")).equals(png));
  assert.equal(statSync(join(inside, "old.png")).mode & 0o777, 0o600);
  for (const [name, why] of [[join(inside, "folder.png"), "it is there and is no regular file"], [join(inside, "none/cat.png"), "ENOENT: no such file or directory"], [join(inside, "x".repeat(300)), "ENAMETOOLONG: name too long"], ["/dev/null", "it is there and is no regular file"]] as const) {
    await assert.rejects(cat.save(name), (fault: unknown) => fault instanceof Error && fault.message === `can't write ${name}: ${why}`);
  }
  assert.deepEqual(readdirSync(inside).sort(), ["folder.png", "link.png", "new.png", "old.png"]);
});

const { WEAVED: weaved, WEAVE: weave } = process.env;
const real = { ...limit, skip: weaved === undefined || weave === undefined ? "set WEAVED and WEAVE to the paths of both" : false };
test("weave verifies what was saved", real, async (t) => {
  assert(weaved !== undefined && weave !== undefined);
  const inside = mkdtempSync(join(folder, "real-")); // of mode 0700, which weaved wants
  const socket = join(inside, "weave.sock");
  const daemon = spawn(weaved, ["--no-config", "--engine", "pattern", "--pattern", "gradient", "--socket", socket], { stdio: ["ignore", "ignore", "pipe"] });
  t.after(() => daemon.kill());
  for await (const line of createInterface(daemon.stderr)) if (line.includes("listening on")) break;
  daemon.stderr.resume();
  const says = async (...args: string[]): Promise<string> => (await promisify(execFile)(weave, [...args, "--socket", socket])).stdout;
  const client = new Client(socket);
  const [here, there] = [join(inside, "here.png"), join(inside, "there.png")];
  for (const prompt of ['a "cat" in a Käse', "猫 \\ \t☂"]) {
    const made = await client.generate(prompt, { ...small, seed: 2n ** 64n - 2n });
    await made.save(here);
    await says("generate", prompt, "--width=128", "--height=64", "--steps=3", "--cfg=1.1", "--seed=18446744073709551614", "--force", "-o", there);
    assert.equal(texts(readFileSync(here)).length, 2);
    assert.deepEqual(texts(readFileSync(here)), texts(readFileSync(there)));
    assert.match(await says("verify", here), /same/);
  }
  const eight = await Promise.all(Array.from({ length: 8 }, () => client.generate("several at once", small)));
  assert.equal(new Set(eight.map(({ seed }) => seed)).size, 8);
  client.close();
});
