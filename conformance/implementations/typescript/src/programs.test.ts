/** The adapter, the client and the server, each as a process of its own. */

import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test, type TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import { parseAddress } from "./command-line.js";
import { Image } from "./image.js";
import {
  ClientReader,
  encodeError,
  encodeRequest,
  encodeResponseHead,
  ErrorCode,
  errorName,
  ServerReader,
  type Answer,
  type Channels,
  type Request,
} from "./weave.js";

const folder = mkdtempSync(join(tmpdir(), "weave-"));
after(() => {
  rmSync(folder, { recursive: true });
});

/** A test that waits for what never comes shall fail. */
const limit = { timeout: 60_000 };

let sockets = 0;
function newPath(): string {
  sockets += 1;
  return join(folder, `${sockets}.sock`);
}

function start(program: string, ...args: string[]): ChildProcess {
  return spawn(process.execPath, [fileURLToPath(new URL(`${program}.js`, import.meta.url)), ...args]);
}

async function run(program: string, args: string[], input = ""): Promise<{ code: unknown; out: string; err: string }> {
  const child = start(program, ...args);
  const closed = once(child, "close");
  let out = "";
  let err = "";
  child.stdout?.on("data", (chunk: Buffer) => (out += chunk.toString()));
  child.stderr?.on("data", (chunk: Buffer) => (err += chunk.toString()));
  child.stdin?.end(input);
  const [code] = (await closed) as [unknown];
  return { code, out, err };
}

function requestFrame(requestId: number, side = 64): Uint8Array {
  const request = { width: side, height: side, steps: 1, cfgScale: 1, seed: 0n, prompt: "x" };
  return encodeRequest({ requestId: BigInt(requestId), ...request });
}

// ---- The adapter ------------------------------------------------------------------------------------------------

test("the adapter answers line for line", limit, async () => {
  const request = Buffer.from(requestFrame(7)).toString("hex");
  const questions = [
    { read: "server", cut: 3, bytes: [{ hex: request, times: 2 }, { hex: "57" }], unknown: "\u2028" },
    { read: "client", cut: 5, bytes: [{ hex: request }] },
    { write: "response-head", request_id: "1", generation_time_ms: 0, image_width: 64, image_height: 64, channels: 5 },
    { write: "error", request_id: "18446744073709551615", error_code: 23, error_msg: "78" },
    { write: "error", request_id: "1", error_code: 23, error_msg: "ff" },
    { write: "something else" },
  ];
  const { code, out, err } = await run("adapter", [], questions.map((question) => JSON.stringify(question)).join("\n"));
  const prompt = (offset: number) => ({ offset, length: 1, hex: "78" });
  const served = {
    request: {
      request_id: "7",
      model_id: 0,
      width: 64,
      height: 64,
      steps: 1,
      cfg_scale: "3f800000",
      seed: "0",
      clip_l: prompt(0),
      clip_g: prompt(1),
      t5: prompt(2),
    },
  };
  assert.equal(err, "");
  assert.deepEqual(
    out.split("\n").map((line) => (line === "" ? null : (JSON.parse(line) as unknown))),
    [
      { frames: [served, served], end: "inside-a-frame" },
      { frames: [{ close: { because: "W1-FRM-010" } }], end: "closed" },
      { refused: "channels" },
      { hex: "57455645000100ff0000001300000000ffffffffffffffff000001f400000017000178" },
      { refused: "error_msg" },
      { unsupported: "this adapter does not know the question" },
      null,
    ],
  );
  assert.equal(code, 0);
});

// ---- The client -------------------------------------------------------------------------------------------------

/** A server for one test. `serve` gets each connection. */
async function fakeServer(t: TestContext, where: string, serve: (socket: Socket) => void): Promise<string> {
  const server: Server = createServer((socket) => {
    socket.on("error", () => socket.destroy()); // clients that leave early are a part of these tests
    serve(socket);
  });
  server.listen(parseAddress(where));
  await once(server, "listening");
  t.after(() => server.close());
  const address = server.address();
  assert(address !== null);
  return typeof address === "string" ? address : `127.0.0.1:${address.port}`;
}

/** Calls `answer` for each request that comes. */
function forEachRequest(socket: Socket, answer: (request: Request) => void): void {
  const reader = new ServerReader();
  socket.on("data", (chunk) => {
    for (const question of reader.read(chunk)) {
      assert(question.kind === "request");
      answer(question);
    }
  });
}

function image({ requestId, width, height }: Request, channels: Channels = 3): Uint8Array {
  const head = encodeResponseHead({ requestId, generationTimeMs: 5, imageWidth: width, imageHeight: height, channels });
  return Buffer.concat([head, Buffer.alloc(width * height * channels, "rgb")]);
}

for (const channels of [3, 4] as const) {
  test(`the client writes an image of ${channels} channels`, limit, async (t) => {
    let asked: Request | undefined;
    const address = await fakeServer(t, "127.0.0.1:0", (socket) => {
      forEachRequest(socket, (request) => {
        asked = request;
        socket.write(image(request, channels));
      });
    });
    const file = join(folder, "image");
    const flags = ["--height", "128", "--steps", "4", "--cfg-scale", "1.5", "--seed", "18446744073709551615", "-o", file];
    const { code, out, err } = await run("client", [address, "a green dog", ...flags]);
    assert.deepEqual({ code, err }, { code: 0, err: "" });
    assert.match(out, /^request 1: 64x128x. in 5 ms, seed 18446744073709551615\n$/);
    assert.equal(asked?.steps, 4);
    assert.equal(asked.cfgScale, 1.5);
    assert.equal(asked.seed, 2n ** 64n - 1n);
    assert.equal(asked.t5.text, "a green dog");
    const made = { prompt: "a green dog", steps: 4, cfgScale: 1.5, seed: asked.seed };
    const pixels = Buffer.alloc(64 * 128 * channels, "rgb");
    const expected = new Image(made, { width: 64, height: 128, channels, pixels, generationTimeMs: 5 });
    assert(readFileSync(file).equals(expected.png()));
  });
}

test("the client takes the answers to pipelined requests in any order", limit, async (t) => {
  const address = await fakeServer(t, newPath(), (socket) => {
    const requests: Request[] = [];
    forEachRequest(socket, (request) => {
      requests.push(request);
      if (requests.length === 50) socket.write(Buffer.concat(requests.reverse().map((one) => image(one))));
    });
  });
  const { code, out } = await run("client", [address, "--count", "50"]);
  assert.equal(code, 0);
  assert.equal(out.match(/^request \d+: 64x64x3/gm)?.length, 50);
});

test("the client shows errors, and goes on with the other requests", limit, async (t) => {
  const address = await fakeServer(t, newPath(), (socket) => {
    forEachRequest(socket, (request) => {
      const { requestId } = request;
      socket.write(requestId === 1n ? encodeError(1n, ErrorCode.GPU_ERROR, "\x1b[2Jon fire") : image(request));
    });
  });
  const { code, out, err } = await run("client", [address, "--count", "2"]);
  assert.equal(code, 1);
  assert.equal(err, "request 1: error 500, GPU_ERROR: \\u{1b}[2Jon fire\n");
  assert.match(out, /^request 2: /);
});

test("the client hears BUSY from a server that answers before it asks, and closes", limit, async (t) => {
  for (const where of [newPath(), "127.0.0.1:0"]) {
    const address = await fakeServer(t, where, (socket) => {
      socket.end(encodeError(0n, ErrorCode.BUSY, "no place"));
    });
    const { code, err } = await run("client", [address, "--count", "2"]);
    assert.deepEqual({ code, err }, { code: 1, err: "request 0: error 500, BUSY: no place\n" });
  }
});

const broken: [string, RegExp, (socket: Socket, request: Request) => void][] = [
  ["closes without an answer", /closed the connection; answers missing: 1/, (socket) => socket.end()],
  [
    "closes in the middle of an image",
    /in the middle of a frame/,
    (socket, request) => socket.end(image(request).subarray(0, 1_000)),
  ],
  ["sends no frame", /magic is 0x48545450.*W1-FRM-006/, (socket) => socket.end("HTTP/1.1 400 Bad Request\r\n")],
  [
    "answers another request",
    /request_id is 9/,
    (socket, request) => socket.write(image({ ...request, requestId: 9n })),
  ],
  [
    "sends an image of another size",
    /64x192 pixels; asked were 64x64/,
    (socket, request) => socket.write(image({ ...request, height: 192 })),
  ],
  ["never answers", /not all answers came within 0.5 seconds/, () => undefined],
];
for (const [what, message, answer] of broken) {
  test(`the client gives up on a server that ${what}`, limit, async (t) => {
    const address = await fakeServer(t, newPath(), (socket) => {
      forEachRequest(socket, (request) => {
        answer(socket, request);
      });
    });
    const { code, err } = await run("client", [address, "--timeout", what === "never answers" ? "0.5" : "30"]);
    assert.equal(code, 3);
    assert.match(err, message);
  });
}

test("the client tells when nobody listens", limit, async () => {
  const { code, err } = await run("client", [newPath()]);
  assert.equal(code, 3);
  assert.match(err, /ENOENT/);
});

test("the client tells what is wrong with its command line", limit, async () => {
  const wrong: [RegExp, string[]][] = [
    [/ADDRESS is missing/, []],
    [/quotes around the prompt/, ["a", "b", "c"]],
    [/width is 65; it must be/, ["a", "--width", "65"]],
    [/--cfg-scale is "x"/, ["a", "--cfg", "x"]],
    [/--cfg-scale is "y"/, ["a", "--cfg-scale", "y"]],
    [/tcp:\/\/box is not tcp:\/\/host:port/, ["tcp://box"]],
    [/--count is "0"/, ["a", "--count", "0"]],
    [/--timeout is 0/, ["a", "--timeout", "0"]],
    [/port is 65536/, ["localhost:65536"]],
    [/--nonsense/, ["a", "--nonsense"]],
    [/the prompt is empty; it must have 1 to 2048 bytes/, ["a", ""]],
  ];
  for (const [message, args] of wrong) {
    const { code, err } = await run("client", args);
    assert.equal(code, 2, args.join(" "));
    assert.match(err, message);
  }
});

test("addresses", limit, () => {
  assert.deepEqual(parseAddress("localhost:80"), { host: "localhost", port: 80 });
  assert.deepEqual(parseAddress("[::1]:65535"), { host: "::1", port: 65_535 });
  assert.deepEqual(parseAddress("tcp://box:80"), { host: "box", port: 80 });
  for (const path of ["/run/weave.sock", "weave.sock", "./a:80", "a/b:80", "::1:80", "a:80b"]) {
    assert.deepEqual(parseAddress(path), { path });
  }
});

// ---- The server -------------------------------------------------------------------------------------------------

interface Running {
  readonly address: string;
  readonly child: ChildProcess;
  /** The exit code and the signal, once it has ended. */
  readonly exited: Promise<unknown[]>;
}

async function startServer(t: TestContext, address: string, ...args: string[]): Promise<Running> {
  const child = start("server", address, ...args);
  const exited = once(child, "exit");
  t.after(async () => {
    child.kill("SIGKILL");
    await exited;
  });
  assert(child.stderr !== null);
  const [line] = (await once(child.stderr, "data")) as [Buffer];
  const [, bound] = /^listening on (.+)\n$/.exec(line.toString()) ?? [];
  assert(bound !== undefined, line.toString());
  return { address: bound, child, exited };
}

/** A connection of a client that writes what it likes. */
async function dial({ address }: Running): Promise<Socket> {
  const socket = connect({ ...parseAddress(address), allowHalfOpen: true });
  await once(socket, "connect");
  return socket;
}

/** Reads on until there are so many answers, or until the server closes if that is left out. */
async function answers(socket: Socket, count = Infinity): Promise<Answer[]> {
  const reader = new ClientReader();
  const got: Answer[] = [];
  for await (const chunk of socket.iterator({ destroyOnReturn: false }) as AsyncIterable<Uint8Array>) {
    for (const answer of reader.read(chunk)) got.push(answer);
    if (got.length >= count) return got;
  }
  assert.equal(reader.state, "between-frames");
  return got;
}

function shown(answer: Answer): string {
  const what = answer.kind === "response" ? `${answer.imageWidth}x${answer.imageHeight}` : errorName(answer.errorCode);
  return `${answer.requestId} ${what}`;
}

for (const where of ["a Unix socket", "TCP"]) {
  test(`the server draws checkerboards on ${where}`, limit, async (t) => {
    const server = await startServer(t, where === "TCP" ? "127.0.0.1:0" : newPath());
    const socket = await dial(server);
    socket.write(requestFrame(1, 192));
    const [answer] = await answers(socket, 1);
    assert(answer?.kind === "response");
    const { imageWidth, imageHeight, channels, imageData } = answer;
    assert.deepEqual({ imageWidth, imageHeight, channels }, { imageWidth: 192, imageHeight: 192, channels: 3 });
    for (const [at, byte] of imageData.entries()) {
      const x = Math.floor(at / 3) % 192;
      const y = Math.floor(at / 3 / 192);
      assert.equal(byte, (Math.floor(x / 8) + Math.floor(y / 8)) % 2 === 0 ? 0x00 : 0xff, `${x}, ${y}`);
    }
    socket.destroy();
  });
}

test("the server answers in order, refuses what is wrong, and goes on", limit, async (t) => {
  const socket = await dial(await startServer(t, newPath()));
  const tall = Buffer.from(requestFrame(2));
  tall.writeUInt32BE(65, 16 + 16);
  const long = Buffer.alloc(16 + 10_485_760);
  long.set(requestFrame(3));
  long.writeUInt32BE(10_485_760, 8);
  for (const bytes of [requestFrame(1, 2048), tall, long, requestFrame(4, 128)]) socket.write(bytes);
  assert.deepEqual((await answers(socket, 4)).map(shown), [
    "1 2048x2048",
    "2 INVALID_DIMENSIONS",
    "3 INVALID_PROMPT",
    "4 128x128",
  ]);
  socket.destroy();
});

test("the server gives a stream up that is not Weave", limit, async (t) => {
  const server = await startServer(t, newPath());
  const long = Buffer.from(requestFrame(1));
  long.writeUInt32BE(10_485_761, 8);
  for (const [bytes, code] of [
    [Buffer.from("GET / HTTP/1.1\r\n\r\n"), "INVALID_MAGIC"],
    [long, "TOO_LARGE"],
  ] as const) {
    const socket = await dial(server);
    socket.write(Buffer.concat([requestFrame(5), bytes, requestFrame(6)]));
    assert.deepEqual((await answers(socket)).map(shown), ["5 64x64", `0 ${code}`]);
    socket.destroy();
  }
});

test("the server closes a connection that goes on after it was given up", limit, async (t) => {
  const socket = await dial(await startServer(t, newPath()));
  socket.resume();
  const timer = setInterval(() => socket.write(Buffer.alloc(64)), 10);
  t.after(() => {
    clearInterval(timer);
  });
  await assert.rejects(once(socket, "close"), /EPIPE|ECONNRESET/);
});

test("the server answers a client that has ended its direction, and then closes", limit, async (t) => {
  const socket = await dial(await startServer(t, newPath()));
  const requests = Array.from({ length: 20 }, (_, index) => requestFrame(index, 512));
  socket.end(Buffer.concat([...requests, requestFrame(99).subarray(0, 30)]));
  assert.equal((await answers(socket)).length, 20);
});

test("a client that takes nothing does not stop the others", limit, async (t) => {
  const server = await startServer(t, newPath());
  const lazy = await Promise.all(Array.from({ length: 20 }, () => dial(server)));
  for (const socket of lazy) {
    socket.write(Buffer.concat(Array.from({ length: 100 }, (_, index) => requestFrame(index, 2048))));
    await once(socket, "readable");
  }
  const socket = await dial(server);
  socket.write(requestFrame(1));
  assert.deepEqual((await answers(socket, 1)).map(shown), ["1 64x64"]);
  for (const one of [socket, ...lazy]) one.destroy();
});

test("the server says BUSY to more connections than it serves, and takes others when there is place", limit, async (t) => {
  const server = await startServer(t, newPath(), "--connections", "1");
  const first = await dial(server);
  first.write(requestFrame(1));
  assert.deepEqual((await answers(first, 1)).map(shown), ["1 64x64"]);
  const second = await dial(server);
  assert.deepEqual((await answers(second)).map(shown), ["0 BUSY"]);
  second.destroy();
  first.end();
  await answers(first);
  const third = await dial(server);
  third.write(requestFrame(3));
  assert.deepEqual((await answers(third, 1)).map(shown), ["3 64x64"]);
  third.destroy();
});

test("the socket is its owner's alone, and a stale one is replaced", limit, async (t) => {
  const path = newPath();
  const server = await startServer(t, path);
  assert.equal(statSync(path).mode & 0o777, 0o600);

  const second = await run("server", [path]);
  assert.equal(second.code, 1);
  assert.match(second.err, /another server listens there/);

  server.child.kill("SIGKILL");
  await server.exited;
  assert(statSync(path).isSocket());
  const successor = await startServer(t, path);
  const socket = await dial(successor);
  socket.write(requestFrame(1));
  assert.equal((await answers(socket, 1)).length, 1);
  socket.destroy();
});

test("the server replaces no other file, and tells what is wrong", limit, async () => {
  const file = join(folder, "a file");
  writeFileSync(file, "precious");
  const wrong: [RegExp, number, string[]][] = [
    [/not a socket/, 1, [file]],
    [/folder is not there/, 1, [join(folder, "nowhere", "weave.sock")]],
    [/ADDRESS is missing/, 2, []],
    [/more than one ADDRESS/, 2, ["a", "b"]],
    [/--connections is "0"/, 2, ["a", "--connections", "0"]],
  ];
  for (const [message, code, args] of wrong) {
    const ended = await run("server", args);
    assert.equal(ended.code, code, args.join(" "));
    assert.match(ended.err, message);
  }
  assert.equal(readFileSync(file, "utf8"), "precious");
});

test("SIGTERM: what was begun is finished, the rest refused, the socket removed", limit, async (t) => {
  const server = await startServer(t, newPath());
  const idle = await dial(server);
  idle.write(requestFrame(1));
  assert.equal((await answers(idle, 1)).length, 1);
  const busy = await dial(server);
  busy.write(Buffer.concat([requestFrame(2, 2048), requestFrame(3)]));
  await once(busy, "readable"); // the image has begun to come, and is larger than what the kernel holds
  server.child.kill("SIGTERM");
  assert.deepEqual(await answers(idle), []); // it is closed: the signal has arrived
  idle.end();
  assert.deepEqual((await answers(busy)).map(shown), ["2 2048x2048", "3 SHUTTING_DOWN"]);
  busy.end();
  assert.deepEqual(await server.exited, [0, null]);
  assert.throws(() => statSync(server.address), /ENOENT/);
});
