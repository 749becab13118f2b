/** All of `spec/vectors`: whole, byte by byte, and in pieces of an odd size (W1-TRN-001). */

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import {
  ClientReader,
  encodeError,
  encodeRequest,
  encodeResponseHead,
  errorName,
  ProtocolError,
  ServerReader,
  type Answer,
  type ErrorCode,
  type Prompt,
  type Question,
  type ResponseHead,
  type StreamState,
} from "./weave.js";

// ---- What a vector is: spec/vectors/README.md -------------------------------------------------------------------

type Blob = ({ readonly text: string } | { readonly hex: string }) & { readonly times?: number };
type ExpectedPrompt = { readonly offset: number; readonly length: number } & Blob;

interface ExpectedRequest {
  readonly request_id: string;
  readonly model_id: number;
  readonly width: number;
  readonly height: number;
  readonly steps: number;
  readonly cfg_scale: { readonly bits: string };
  readonly seed: string;
  readonly clip_l: ExpectedPrompt;
  readonly clip_g: ExpectedPrompt;
  readonly t5: ExpectedPrompt;
}

interface ExpectedAnswer {
  readonly request_id: string;
  readonly status: number;
  readonly error_code: number;
  readonly name: string;
  readonly field: string;
}

interface ExpectedHead {
  readonly request_id: string;
  readonly status: number;
  readonly generation_time_ms: number;
  readonly image_width: number;
  readonly image_height: number;
  readonly channels: number;
  readonly image_data_len: number;
}

interface ExpectedError {
  readonly request_id: string;
  readonly status: number;
  readonly error_code: number;
  readonly name?: string;
  readonly error_msg_len: number;
  readonly error_msg: Blob;
  readonly trailing: number;
}

type ExpectedFrame =
  | { readonly request: ExpectedRequest }
  | { readonly answer: ExpectedAnswer }
  | { readonly response: ExpectedHead & { readonly image_data: Blob; readonly trailing: number } }
  | { readonly error: ExpectedError }
  | { readonly close: { readonly because: string; readonly field: string } };

interface Vector {
  readonly name: string;
  readonly receiver: "server" | "client";
  readonly bytes: readonly { readonly hex: string; readonly times?: number }[];
  readonly expect: {
    readonly frames: readonly ExpectedFrame[];
    readonly end: StreamState;
    readonly head?: ExpectedHead;
  };
  readonly sender?: string;
}

const folder = new URL("../../../../spec/vectors/", import.meta.url);
const vectors = readdirSync(folder)
  .filter((file) => file.endsWith(".json") && file !== "schema.json")
  .flatMap((file) => (JSON.parse(readFileSync(new URL(file, folder), "utf8")) as { vectors: Vector[] }).vectors);

function bytesOf(blob: Blob): Buffer {
  const once = "text" in blob ? Buffer.from(blob.text) : Buffer.from(blob.hex.replaceAll(" ", ""), "hex");
  return once.length === 0 ? once : Buffer.alloc(once.length * (blob.times ?? 1), once);
}

// ---- Reading ----------------------------------------------------------------------------------------------------

interface Outcome {
  readonly frames: (Question | Answer | ProtocolError)[];
  readonly end: StreamState;
  readonly head: ClientReader["head"];
}

function read(receiver: Vector["receiver"], stream: Uint8Array, cut: number): Outcome {
  const reader = receiver === "server" ? new ServerReader() : new ClientReader();
  const frames: Outcome["frames"] = [];
  try {
    for (let at = 0; at < stream.length; at += cut) {
      for (const frame of reader.read(stream.subarray(at, at + cut))) frames.push(frame);
    }
  } catch (fault) {
    if (!(fault instanceof ProtocolError)) throw fault;
    frames.push(fault);
  }
  return { frames, end: reader.state, head: reader instanceof ClientReader ? reader.head : undefined };
}

function check(outcome: Outcome, expect: Vector["expect"]): void {
  assert.equal(outcome.end, expect.end);
  assert.equal(outcome.frames.length, expect.frames.length);
  for (const [index, expected] of expect.frames.entries()) {
    const frame = outcome.frames[index];
    assert(frame !== undefined);
    if (frame instanceof ProtocolError) {
      assert("close" in expected);
      assert.deepEqual({ because: frame.requirement, field: frame.field }, expected.close);
    } else if (frame.kind === "request") {
      assert("request" in expected);
      checkRequest(frame, expected.request);
    } else if (frame.kind === "refusal") {
      assert("answer" in expected);
      checkRefusal(frame, expected.answer);
    } else if (frame.kind === "response") {
      assert("response" in expected);
      const { image_data, trailing, ...head } = expected.response;
      checkHead(frame, head);
      assert(bytesOf(image_data).equals(frame.imageData), "image_data");
      assert.equal(frame.trailing, trailing);
    } else {
      assert("error" in expected);
      const { error_msg, name, ...fields } = expected.error;
      assert.deepEqual(
        {
          request_id: String(frame.requestId),
          status: frame.status,
          error_code: frame.errorCode,
          error_msg_len: frame.errorMsgLen,
          trailing: frame.trailing,
        },
        fields,
      );
      assert.equal(errorName(frame.errorCode), name);
      assert(bytesOf(error_msg).equals(frame.errorMsg), "error_msg");
    }
  }
  if (expect.head !== undefined) {
    assert(outcome.head?.kind === "response");
    checkHead(outcome.head, expect.head);
  }
}

function checkRequest(request: Extract<Question, { kind: "request" }>, expected: ExpectedRequest): void {
  const prompt = ({ offset, length, text }: Prompt) => ({ offset, length, text });
  const expectedPrompt = (blob: ExpectedPrompt) => ({
    offset: blob.offset,
    length: blob.length,
    text: bytesOf(blob).toString(),
  });
  const bits = Buffer.alloc(4);
  bits.writeFloatBE(request.cfgScale);
  assert.deepEqual(
    {
      request_id: String(request.requestId),
      model_id: request.modelId,
      width: request.width,
      height: request.height,
      steps: request.steps,
      cfg_scale: bits.toString("hex").toUpperCase(),
      seed: String(request.seed),
      clip_l: prompt(request.clipL),
      clip_g: prompt(request.clipG),
      t5: prompt(request.t5),
    },
    {
      ...expected,
      cfg_scale: expected.cfg_scale.bits,
      clip_l: expectedPrompt(expected.clip_l),
      clip_g: expectedPrompt(expected.clip_g),
      t5: expectedPrompt(expected.t5),
    },
  );
}

function checkRefusal(refusal: Extract<Question, { kind: "refusal" }>, expected: ExpectedAnswer): void {
  assert.equal(String(refusal.requestId), expected.request_id);
  assert.equal(errorName(refusal.errorCode), expected.name);
  assert.match(refusal.errorMsg, new RegExp(expected.field)); // W1-ERR-004
  // What a client would make of the answer.
  const [answer, ...others] = read("client", refusal.answer, refusal.answer.length).frames;
  assert.equal(others.length, 0);
  assert(answer !== undefined && !(answer instanceof ProtocolError) && answer.kind === "error");
  assert.equal(answer.requestId, refusal.requestId);
  assert.equal(answer.status, expected.status);
  assert.equal(answer.errorCode, expected.error_code);
  assert.equal(Buffer.from(answer.errorMsg).toString(), refusal.errorMsg);
  assert.equal(answer.trailing, 0);
  assert.equal(refusal.close, ["INVALID_MAGIC", "TOO_LARGE"].includes(expected.name)); // W1-CON-005
}

function checkHead(head: ResponseHead, expected: ExpectedHead): void {
  assert.deepEqual(
    {
      request_id: String(head.requestId),
      status: head.status,
      generation_time_ms: head.generationTimeMs,
      image_width: head.imageWidth,
      image_height: head.imageHeight,
      channels: head.channels,
      image_data_len: head.imageDataLen,
    },
    expected,
  );
}

for (const { name, receiver, bytes, expect } of vectors) {
  test(name, () => {
    const stream = new Uint8Array(Buffer.concat(bytes.map(bytesOf)));
    for (const cut of [stream.length || 1, 1, 4_093]) check(read(receiver, stream, cut), expect);
  });
}

// ---- Writing ----------------------------------------------------------------------------------------------------

/** What our writer makes of a frame that was accepted, or nothing if it would never send this. */
function rewrite(frame: Outcome["frames"][number]): Uint8Array | undefined {
  if (frame instanceof ProtocolError || frame.kind === "refusal") return undefined;
  if (frame.kind === "response") return Buffer.concat([encodeResponseHead(frame), frame.imageData]);
  if (frame.kind === "error") {
    if (errorName(frame.errorCode) === undefined) return undefined; // of a later version
    return encodeError(frame.requestId, frame.errorCode as ErrorCode, Buffer.from(frame.errorMsg).toString());
  }
  const { clipL, clipG, t5 } = frame;
  // The writer lays the prompts out one after the other.
  if (clipL.offset !== 0 || clipG.offset !== clipL.length || t5.offset !== clipL.length + clipG.length) return undefined;
  return encodeRequest({ ...frame, prompt: { clipL: clipL.text, clipG: clipG.text, t5: t5.text } });
}

/** Has bytes in prompt_data that no range covers, after its three prompts: the writer has no such thing. */
const NOT_WRITTEN = ["ranges-before-a-rest"];

test("what was accepted is written as it came, where a sender would send it", () => {
  const written = { request: 0, response: 0, error: 0 };
  for (const { name, receiver, bytes, expect, sender } of vectors) {
    if (sender !== undefined || expect.end !== "between-frames" || NOT_WRITTEN.includes(name)) continue;
    const stream = Buffer.concat(bytes.map(bytesOf));
    const { frames } = read(receiver, stream, stream.length || 1);
    const again = frames.map(rewrite);
    if (again.includes(undefined)) continue;
    assert(Buffer.concat(again as Uint8Array[]).equals(stream), name);
    for (const frame of frames) {
      if (!(frame instanceof ProtocolError) && frame.kind !== "refusal") written[frame.kind] += 1;
    }
  }
  // So that this can't pass by writing nothing.
  assert(written.request >= 60 && written.response >= 15 && written.error >= 30, JSON.stringify(written));
});
