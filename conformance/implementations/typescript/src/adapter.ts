/**
 * The adapter for `weave-conform codec`: questions on standard input, answers on standard output, one JSON object a
 * line, as `conformance/ADAPTER.md` describes.
 */

import { Buffer } from "node:buffer";
import process from "node:process";
import {
  ClientReader,
  encodeError,
  encodeRequest,
  encodeResponseHead,
  FieldError,
  ProtocolError,
  ServerReader,
  showErrorMsg,
  type Answer,
  type Channels,
  type ErrorCode,
  type Prompt,
  type Question,
} from "./weave.js";

interface Piece {
  readonly hex: string;
  readonly times?: number;
}

/** The questions, with the members of JSON as the document names them. */
type Asked =
  | { readonly read: string; readonly cut: number; readonly bytes: readonly Piece[] }
  | {
      readonly write: "request";
      readonly request_id: string;
      readonly width: number;
      readonly height: number;
      readonly steps: number;
      readonly cfg_scale: string;
      readonly seed: string;
      readonly clip_l: string;
      readonly clip_g: string;
      readonly t5: string;
    }
  | {
      readonly write: "response-head";
      readonly request_id: string;
      readonly generation_time_ms: number;
      readonly image_width: number;
      readonly image_height: number;
      readonly channels: number;
    }
  | {
      readonly write: "error";
      readonly request_id: string;
      readonly error_code: number;
      readonly error_msg: string;
    };

function answerTo(asked: Asked): object {
  if ("read" in asked) {
    const stream = Buffer.concat(asked.bytes.map(pieceBytes));
    if (asked.read === "server") return readAsServer(stream, asked.cut);
    if (asked.read === "client") return readAsClient(stream, asked.cut);
  } else {
    try {
      const bytes = write(asked);
      if (bytes !== undefined) return { hex: hexOf(bytes) };
    } catch (fault) {
      if (fault instanceof FieldError) return { refused: fault.field };
      throw fault;
    }
  }
  return { unsupported: "this adapter does not know the question" };
}

// ---- read -----------------------------------------------------------------------------------------------------

function pieceBytes({ hex, times = 1 }: Piece): Uint8Array {
  const bytes = Buffer.from(hex, "hex");
  return times === 1 ? bytes : Buffer.alloc(bytes.length * times, bytes);
}

function* cuts(stream: Uint8Array, cut: number): Generator<Uint8Array> {
  for (let at = 0; at < stream.length; at += cut) yield stream.subarray(at, at + cut);
}

function readAsServer(stream: Uint8Array, cut: number): object {
  const reader = new ServerReader();
  const frames: object[] = [];
  for (const chunk of cuts(stream, cut)) {
    for (const question of reader.read(chunk)) frames.push(questionJson(question));
  }
  return { frames, end: reader.state };
}

function questionJson(question: Question): object {
  if (question.kind === "refusal") {
    const [field] = question.errorMsg.split(" "); // it begins with the field at fault
    return { answer: { hex: hexOf(question.answer), field } };
  }
  const { requestId, modelId, width, height, steps, cfgScale, seed, clipL, clipG, t5 } = question;
  const prompt = ({ offset, length, text }: Prompt) => ({ offset, length, hex: Buffer.from(text).toString("hex") });
  return {
    request: {
      request_id: String(requestId),
      model_id: modelId,
      width,
      height,
      steps,
      cfg_scale: bitsOf(cfgScale),
      seed: String(seed),
      clip_l: prompt(clipL),
      clip_g: prompt(clipG),
      t5: prompt(t5),
    },
  };
}

function readAsClient(stream: Uint8Array, cut: number): object {
  const reader = new ClientReader();
  const frames: object[] = [];
  try {
    for (const chunk of cuts(stream, cut)) {
      for (const answer of reader.read(chunk)) frames.push(answerJson(answer));
    }
  } catch (fault) {
    if (!(fault instanceof ProtocolError)) throw fault;
    frames.push({ close: { because: fault.requirement } });
  }
  return { frames, end: reader.state };
}

function answerJson(answer: Answer): object {
  if (answer.kind === "error") {
    return {
      error: {
        request_id: String(answer.requestId),
        status: answer.status,
        error_code: answer.errorCode,
        hex: hexOf(answer.errorMsg),
        shown: Buffer.from(showErrorMsg(answer.errorMsg)).toString("hex"),
        trailing: answer.trailing,
      },
    };
  }
  return {
    response: {
      request_id: String(answer.requestId),
      status: answer.status,
      generation_time_ms: answer.generationTimeMs,
      image_width: answer.imageWidth,
      image_height: answer.imageHeight,
      channels: answer.channels,
      image_data_len: answer.imageDataLen,
      crc32: hex32(crc32(answer.imageData)),
      trailing: answer.trailing,
    },
  };
}

// ---- write ----------------------------------------------------------------------------------------------------

function write(asked: Exclude<Asked, { read: unknown }>): Uint8Array | undefined {
  switch (asked.write) {
    case "request":
      return encodeRequest({
        requestId: BigInt(asked.request_id),
        width: asked.width,
        height: asked.height,
        steps: asked.steps,
        cfgScale: Buffer.from(asked.cfg_scale, "hex").readFloatBE(),
        seed: BigInt(asked.seed),
        prompt: { clipL: text("clip_l", asked.clip_l), clipG: text("clip_g", asked.clip_g), t5: text("t5", asked.t5) },
      });
    case "response-head":
      return encodeResponseHead({
        requestId: BigInt(asked.request_id),
        generationTimeMs: asked.generation_time_ms,
        imageWidth: asked.image_width,
        imageHeight: asked.image_height,
        channels: asked.channels as Channels, // the encoder refuses others
      });
    case "error":
      return encodeError(
        BigInt(asked.request_id),
        asked.error_code as ErrorCode, // the encoder refuses others
        text("error_msg", asked.error_msg),
      );
    default:
      return undefined;
  }
}

/** The codec takes strings, and bytes that are not UTF-8 are none: they are refused before it comes to the codec. */
function text(field: string, hex: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Buffer.from(hex, "hex"));
  } catch {
    throw new FieldError(field, `${field} is not UTF-8; it must be`);
  }
}

// ---- Numbers and bytes ----------------------------------------------------------------------------------------

function hexOf(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("hex");
}

function hex32(value: number): string {
  return value.toString(16).padStart(8, "0");
}

/** The bits of a binary32. */
function bitsOf(value: number): string {
  const bytes = Buffer.alloc(4);
  bytes.writeFloatBE(value);
  return bytes.toString("hex");
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  return crc;
});

/** The CRC of zlib; Node.js has had it for itself since 22.2 only. */
function crc32(bytes: Uint8Array): number {
  let crc = 0xffff_ffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ (CRC_TABLE[(crc ^ byte) & 0xff] ?? 0);
  return ~crc >>> 0;
}

// ---- Lines ----------------------------------------------------------------------------------------------------

function answerLine(line: string): void {
  process.stdout.write(`${JSON.stringify(answerTo(JSON.parse(line) as Asked))}\n`);
}

// A line ends with "\n" alone, which node:readline does not hold to: JSON may have U+2028 in a string.
let rest = "";
process.stdin.setEncoding("utf8");
for await (const chunk of process.stdin as AsyncIterable<string>) {
  const lines = (rest + chunk).split("\n");
  rest = lines.pop() ?? "";
  for (const line of lines) answerLine(line);
}
if (rest !== "") answerLine(rest);
