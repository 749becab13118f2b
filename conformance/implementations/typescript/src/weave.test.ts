/** What the vectors don't reach: senders that refuse, the texts of errors, what a reader keeps in between. */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  ClientReader,
  encodeError,
  encodeRequest,
  encodeResponseHead,
  ErrorCode,
  errorName,
  FieldError,
  MAX_REQUEST_PAYLOAD,
  MAX_RESPONSE_PAYLOAD,
  MAX_SKIPPED_PAYLOAD,
  ProtocolError,
  ServerReader,
  showErrorMsg,
  statusOf,
  type Answer,
  type Channels,
  type Question,
  type RequestToSend,
} from "./weave.js";

const request: RequestToSend = {
  requestId: 1n,
  width: 512,
  height: 512,
  steps: 28,
  cfgScale: 7,
  seed: 0n,
  prompt: "a cat in space",
};
const head = { requestId: 1n, generationTimeMs: 10_000, imageWidth: 512, imageHeight: 512, channels: 3 } as const;

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("hex");
}

/** A header, for frames that no encoder makes. */
function header(msgType: number, payloadLen: number, version = 1): Uint8Array {
  const bytes = Buffer.alloc(16);
  bytes.write("WEVE");
  bytes.writeUInt16BE(version, 4);
  bytes.writeUInt16BE(msgType, 6);
  bytes.writeUInt32BE(payloadLen, 8);
  return bytes;
}

function asServer(...chunks: Uint8Array[]): Question[] {
  const reader = new ServerReader();
  return chunks.flatMap((chunk) => [...reader.read(chunk)]);
}

function asClient(...chunks: Uint8Array[]): Answer[] {
  const reader = new ClientReader();
  return chunks.flatMap((chunk) => [...reader.read(chunk)]);
}

/** Whether an error tells this field, and tells it in its text. */
function aboutField(field: string): (fault: unknown) => boolean {
  return (fault) => fault instanceof FieldError && fault.field === field && fault.message.startsWith(field);
}

// ---- Writing ----------------------------------------------------------------------------------------------------

test("the examples of the text are written as they stand there", () => {
  assert.equal(
    hex(encodeRequest(request)),
    "5745564500010001000000660000000000000000000000010000000000000200000002000000001c40e00000000000000000000000000000" +
      "0000000e0000000e0000000e0000001c0000000e" +
      "6120636174" + "20696e207370616365612063617420696e207370616365612063617420696e207370616365",
  );
  assert.equal(
    hex(encodeResponseHead(head)),
    "5745564500010002000c0020000000000000000000000001000000c8000027100000020000000200000000030" + "00c0000",
  );
  assert.equal(
    hex(encodeError(1n, ErrorCode.INVALID_MODEL_ID, "unsupported model ID")),
    "57455645000100ff0000002600000000000000000000000100000190000000030014756e737570706f72746564206d6f64656c204944",
  );
});

test("a request's values out of range are refused by their sender", () => {
  const refused: [string, Partial<RequestToSend>][] = [
    ["request_id", { requestId: -1n }],
    ["request_id", { requestId: 2n ** 64n }],
    ["width", { width: 0 }],
    ["width", { width: 65 }],
    ["width", { width: 2112 }],
    ["width", { width: 64.5 }],
    ["height", { height: NaN }],
    ["height", { height: 32 }],
    ["steps", { steps: 0 }],
    ["steps", { steps: 101 }],
    ["steps", { steps: 1.5 }],
    ["cfg_scale", { cfgScale: NaN }],
    ["cfg_scale", { cfgScale: -0.1 }],
    ["cfg_scale", { cfgScale: 20.01 }],
    ["cfg_scale", { cfgScale: Infinity }],
    ["seed", { seed: 2n ** 64n }],
    ["clip_l_length", { prompt: "" }],
    ["clip_g_length", { prompt: { clipL: "x", clipG: "x".repeat(2049), t5: "x" } }],
    ["t5_length", { prompt: { clipL: "x", clipG: "x", t5: "ü".repeat(1025) } }],
    ["clip_l", { prompt: "a\0b" }],
    ["t5", { prompt: { clipL: "x", clipG: "x", t5: "\ud83d" } }],
  ];
  for (const [field, values] of refused) {
    assert.throws(() => encodeRequest({ ...request, ...values }), aboutField(field), field);
  }
});

test("the largest values that a request may have arrive", () => {
  const largest: RequestToSend = {
    requestId: 2n ** 64n - 1n,
    width: 2048,
    height: 64,
    steps: 100,
    cfgScale: 20,
    seed: 2n ** 64n - 1n,
    prompt: { clipL: "ü".repeat(1024), clipG: "\u{1f431}".repeat(512), t5: "\ufeff" + "x".repeat(2045) },
  };
  const frame = encodeRequest(largest);
  assert.equal(frame.length, 16 + MAX_REQUEST_PAYLOAD);
  const [question] = asServer(frame);
  assert(question?.kind === "request");
  const { requestId, width, height, steps, cfgScale, seed, clipL, clipG, t5 } = question;
  const prompt = { clipL: clipL.text, clipG: clipG.text, t5: t5.text };
  assert.deepEqual({ requestId, width, height, steps, cfgScale, seed, prompt }, largest);
});

test("a sender writes 0.0 for -0.0", () => {
  assert.equal(hex(encodeRequest({ ...request, cfgScale: -0 }).subarray(40, 44)), "00000000");
});

test("a response's values out of range are refused by their sender", () => {
  const refused: [string, Partial<Parameters<typeof encodeResponseHead>[0]>][] = [
    ["request_id", { requestId: -1n }],
    ["generation_time_ms", { generationTimeMs: -1 }],
    ["generation_time_ms", { generationTimeMs: NaN }],
    ["image_width", { imageWidth: 63 }],
    ["image_height", { imageHeight: 2112 }],
    ["channels", { channels: 2 as Channels }],
  ];
  for (const [field, values] of refused) {
    assert.throws(() => encodeResponseHead({ ...head, ...values }), aboutField(field), field);
  }
});

test("a time that is no u32 is written as the nearest that is", () => {
  const written = (generationTimeMs: number) => hex(encodeResponseHead({ ...head, generationTimeMs }).subarray(28, 32));
  assert.equal(written(1.9), "00000001");
  assert.equal(written(2 ** 32 - 1), "ffffffff");
  assert.equal(written(2 ** 32), "ffffffff");
  assert.equal(written(Infinity), "ffffffff");
});

test("an error that must not be sent is refused", () => {
  assert.throws(() => encodeError(-1n, ErrorCode.BUSY, ""), aboutField("request_id"));
  for (const code of [0, 11, 2 ** 32]) {
    assert.throws(() => encodeError(1n, code as ErrorCode, ""), aboutField("error_code"));
  }
  assert.throws(() => encodeError(1n, ErrorCode.BUSY, "ü".repeat(128)), aboutField("error_msg"));
  assert.throws(() => encodeError(1n, ErrorCode.BUSY, "\udc00"), aboutField("error_msg"));
  assert.equal(encodeError(1n, ErrorCode.BUSY, "x".repeat(255)).length, 16 + 18 + 255);
});

test("codes have the names and the status of the text's table", () => {
  const serverFaults = new Set([8, 9, 10, 23, 24, 99]);
  assert.equal(Object.keys(ErrorCode).length, 16);
  for (const [name, code] of Object.entries(ErrorCode)) {
    assert.equal(errorName(code), name);
    assert.equal(statusOf(code), serverFaults.has(code) ? 500 : 400, name);
  }
  assert.equal(errorName(0), undefined);
});

// ---- A server reads ---------------------------------------------------------------------------------------------

test("no part of a prompt comes back in an error", () => {
  const secret = "swordfish";
  const refused = (change: (payload: Buffer) => unknown, payloadLen?: number) => {
    const frame = Buffer.from(encodeRequest({ ...request, prompt: secret.repeat(4) }));
    change(frame.subarray(16));
    if (payloadLen !== undefined) frame.writeUInt32BE(payloadLen, 8);
    return asServer(frame).at(-1);
  };
  const questions = [
    refused((payload) => (payload[60] = 0xff)),
    refused((payload) => (payload[61] = 0)),
    refused((payload) => payload.writeUInt32BE(100, 36)),
    refused((payload) => payload.writeUInt32BE(2049, 40)),
    // A wrong payload_len: a piece of the prompt stands where the next frame should begin.
    refused(() => undefined, 60 + 36),
  ];
  for (const question of questions) {
    assert(question?.kind === "refusal");
    assert.doesNotMatch(question.errorMsg, /sword|73.?77.?6f/i);
  }
  assert.deepEqual(
    questions.map((question) => question?.kind === "refusal" && errorName(question.errorCode)),
    [...Array<string>(4).fill("INVALID_PROMPT"), "INVALID_MAGIC"],
  );
});

test("texts of errors name the field, its value and what is allowed", () => {
  const texts = (change: (payload: Buffer) => unknown) => {
    const frame = Buffer.from(encodeRequest(request));
    change(frame.subarray(16));
    return asServer(frame).map((question) => (question.kind === "refusal" ? question.errorMsg : ""));
  };
  assert.deepEqual(texts((payload) => payload.writeUInt32BE(65, 12)), [
    "width is 65; it must be 64 to 2048 and a multiple of 64",
  ]);
  assert.deepEqual(texts((payload) => payload.writeUInt32BE(0xffffffff, 20)), [
    "steps is 4294967295; it must be 1 to 100",
  ]);
  assert.deepEqual(texts((payload) => payload.writeUInt32BE(0x7fc00000, 24)), [
    "cfg_scale is NaN; it must be 0.0 to 20.0",
  ]);
  assert.deepEqual(texts((payload) => payload.writeUInt32BE(0xffffffff, 52)), [
    "t5_offset is 4294967295 and t5_length 14; the range must lie within the 42 bytes of prompt_data",
  ]);
  assert.deepEqual(asServer(header(1, MAX_SKIPPED_PAYLOAD + 1)).map((q) => q.kind === "refusal" && q.errorMsg), [
    "payload_len is 10485761; it must be at most 6204",
  ]);
});

test("questions are made as they are asked for, and none is lost", () => {
  const frames = [1n, 2n, 3n].map((requestId) => encodeRequest({ ...request, requestId }));
  const reader = new ServerReader();
  const questions = reader.read(Buffer.concat(frames));
  for (const id of [1n, 2n, 3n]) {
    const { value } = questions.next();
    assert.equal(value?.requestId, id);
    assert.equal(reader.state, "between-frames");
  }
  assert.equal(questions.next().done, true);
});

test("a request does not change when the caller uses its chunk again", () => {
  const chunk = Buffer.from(encodeRequest(request));
  const [question] = asServer(chunk);
  chunk.fill(0);
  assert(question?.kind === "request");
  assert.equal(question.t5.text, "a cat in space");
});

test("what is too long for a request is skipped without being stored", () => {
  const reader = new ServerReader();
  const chunk = Buffer.alloc(1 << 20); // a payload that begins with the request_id 0 and asks for 0x0 pixels
  const before = process.memoryUsage().arrayBuffers;
  assert.deepEqual([...reader.read(header(1, MAX_SKIPPED_PAYLOAD))], []);
  for (let sent = 0; sent < MAX_SKIPPED_PAYLOAD - chunk.length; sent += chunk.length) {
    assert.deepEqual([...reader.read(chunk)], []);
  }
  assert(process.memoryUsage().arrayBuffers - before < chunk.length, "the reader holds on to what it skips");
  assert.equal(reader.state, "inside-a-frame");
  const [question] = reader.read(chunk);
  assert(question?.kind === "refusal" && question.errorCode === ErrorCode.INVALID_DIMENSIONS);
  assert.equal(reader.state, "between-frames");
});

test("bytes after a closing refusal are not looked at", () => {
  const reader = new ServerReader();
  const bytes = Buffer.concat([Buffer.from("GET / HTTP/1.0\r\n"), encodeRequest(request)]);
  assert.equal([...reader.read(bytes)].length, 1);
  assert.deepEqual([...reader.read(encodeRequest(request))], []);
  assert.equal(reader.state, "closed");
});

test("whatever byte is changed, a stream is read in the same way whole and byte by byte", () => {
  const frames = Buffer.concat([encodeRequest(request), encodeRequest(request)]);
  const seen = new Set<string>();
  for (let at = 0; at < frames.length; at++) {
    for (const change of [0x01, 0x80, 0xff]) {
      const changed = Uint8Array.from(frames);
      changed[at] = (changed[at] ?? 0) ^ change;
      const questions = asServer(changed);
      assert.deepEqual(asServer(...Array.from(changed, (byte) => Uint8Array.of(byte))), questions);
      for (const question of questions) seen.add(question.kind === "refusal" ? String(question.errorCode) : "request");
    }
  }
  assert.deepEqual([...seen].sort(), ["1", "2", "21", "22", "3", "4", "5", "6", "7", "request"]);
});

// ---- A client reads ---------------------------------------------------------------------------------------------

test("memory for pixels is not taken before the fields before them are checked", () => {
  const lie = Buffer.from(encodeResponseHead({ ...head, imageWidth: 2048, imageHeight: 2048, channels: 4 }));
  assert.equal(lie.readUInt32BE(8), MAX_RESPONSE_PAYLOAD);
  lie.writeUInt32BE(2112, 16 + 16);
  const before = process.memoryUsage().arrayBuffers;
  const reader = new ClientReader();
  assert.throws(() => [...reader.read(lie)], ProtocolError);
  assert(process.memoryUsage().arrayBuffers - before < 1 << 20);
  assert.equal(reader.state, "closed");
  assert.deepEqual([...reader.read(encodeError(1n, ErrorCode.BUSY, ""))], []);
});

test("what is known of an answer on its way can be asked for", () => {
  const reader = new ClientReader();
  assert.deepEqual([...reader.read(encodeResponseHead({ ...head, imageWidth: 64, imageHeight: 64 }))], []);
  const known = reader.head;
  assert(known?.kind === "response");
  assert.equal(known.imageWidth, 64);
  assert.equal([...reader.read(new Uint8Array(64 * 64 * 3))].length, 1);
  assert.equal(reader.head, undefined);
});

test("answers before a broken frame are given before the exception", () => {
  const reader = new ClientReader();
  const answers = reader.read(Buffer.concat([encodeError(7n, ErrorCode.BUSY, "later"), Buffer.alloc(16)]));
  assert.equal((answers.next().value as Answer).requestId, 7n);
  assert.throws(
    () => answers.next(),
    (fault) => fault instanceof ProtocolError && fault.requirement === "W1-FRM-006",
  );
});

test("the pixels that were given out are not written to by what follows", () => {
  const frame = (value: number) =>
    Buffer.concat([
      encodeResponseHead({ ...head, imageWidth: 64, imageHeight: 64 }),
      Buffer.alloc(64 * 64 * 3, value),
    ]);
  const [first, second] = asClient(Buffer.concat([frame(1), frame(2)]));
  assert(first?.kind === "response" && second?.kind === "response");
  assert(first.imageData.every((byte) => byte === 1));
  assert(second.imageData.every((byte) => byte === 2));
});

test("an error is made fit for a terminal", () => {
  const shown: [string | Uint8Array, string][] = [
    ["width is 65", "width is 65"],
    ["größer \u{1f431} 猫", "größer \u{1f431} 猫"],
    ["\x1b[2J\x07gone\r\n\x7f", "\\u{1b}[2J\\u{7}gone\\u{d}\\u{a}\\u{7f}"],
    ["\x9b2J\x00\t", "\\u{9b}2J\\u{0}\\u{9}"],
    ["\u2028\u2029\u202egnp", "\\u{2028}\\u{2029}\\u{202e}gnp"],
    ["\ufeffx", "\ufeffx"],
    [Uint8Array.of(0x61, 0xff, 0xed, 0xa0, 0x80, 0x62, 0xe2, 0x82), "a\ufffd\ufffd\ufffd\ufffdb\ufffd"],
    ["", ""],
  ];
  for (const [text, expected] of shown) {
    assert.equal(showErrorMsg(typeof text === "string" ? Buffer.from(text) : text), expected);
  }
});
