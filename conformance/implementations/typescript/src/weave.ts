/**
 * Weave, version 1: what its messages look like as bytes, in both directions.
 *
 * {@link ServerReader} and {@link ClientReader} turn the bytes of a connection into messages, however they are cut;
 * {@link encodeRequest}, {@link encodeResponseHead} and {@link encodeError} turn messages into bytes. There is no
 * input or output in here and nothing of Node.js, so it works in browsers too.
 *
 * The ids in the comments are those of the protocol's text, `spec/weave-v1.md`. Messages of errors name fields as
 * that text does.
 */

/** The version that is spoken here: the only one, and so the highest (W1-VER-001). */
export const VERSION = 1;
/** Bytes of the header that every frame begins with. */
export const HEADER_LEN = 16;
/** The longest payload of a request: 12 + 48 + 6,144 bytes. */
export const MAX_REQUEST_PAYLOAD = 6_204;
/** The longest payload that a server skips; a longer one ends the connection. */
export const MAX_SKIPPED_PAYLOAD = 10_485_760;
/** The longest payload that a client takes: 32 + 2048 · 2048 · 4 bytes. */
export const MAX_RESPONSE_PAYLOAD = 16_777_248;
/** The longest prompt, in bytes of UTF-8. */
export const MAX_PROMPT_LEN = 2_048;
/** The longest text of an error that a server sends, in bytes of UTF-8 (W1-ERR-003). */
export const MAX_ERROR_MSG_LEN = 255;

const MAGIC = 0x57455645;
const REQUEST = 0x0001;
const RESPONSE = 0x0002;
const ERROR = 0x00ff;

/** Bytes of a request's payload that are the same for every model, and those before prompt_data. */
const REQUEST_COMMON_LEN = 12;
const REQUEST_FIXED_LEN = 60;
const RESPONSE_FIXED_LEN = 32;
const ERROR_FIXED_LEN = 18;
const MAX_PROMPT_DATA_LEN = 3 * MAX_PROMPT_LEN;
const MAX_U32 = 0xffff_ffff;

/** The error_codes that this version knows. Others may come, and are as good (W1-ERR-006). */
export const ErrorCode = {
  INVALID_MAGIC: 1,
  UNSUPPORTED_VERSION: 2,
  INVALID_MODEL_ID: 3,
  INVALID_PROMPT: 4,
  INVALID_DIMENSIONS: 5,
  INVALID_STEPS: 6,
  INVALID_CFG: 7,
  OUT_OF_MEMORY: 8,
  GPU_ERROR: 9,
  TIMEOUT: 10,
  MALFORMED: 20,
  TOO_LARGE: 21,
  UNSUPPORTED_TYPE: 22,
  BUSY: 23,
  SHUTTING_DOWN: 24,
  INTERNAL: 99,
} as const;
export type ErrorCode = (typeof ErrorCode)[keyof typeof ErrorCode];

/** 400: the client is at fault. 500: the server is. */
export type ErrorStatus = 400 | 500;

const SERVER_FAULTS: ReadonlySet<ErrorCode> = new Set([
  ErrorCode.OUT_OF_MEMORY,
  ErrorCode.GPU_ERROR,
  ErrorCode.TIMEOUT,
  ErrorCode.BUSY,
  ErrorCode.SHUTTING_DOWN,
  ErrorCode.INTERNAL,
]);

/** The status that belongs to a code (W1-ERR-002). */
export function statusOf(code: ErrorCode): ErrorStatus {
  return SERVER_FAULTS.has(code) ? 500 : 400;
}

/** The name of an error_code, if this version knows it. */
export function errorName(errorCode: number): keyof typeof ErrorCode | undefined {
  const names = Object.keys(ErrorCode) as (keyof typeof ErrorCode)[];
  return names.find((name) => ErrorCode[name] === errorCode);
}

/** A value that must not be sent. The message says which, and what is allowed; it never has a prompt in it. */
export class FieldError extends RangeError {
  override readonly name: string = "FieldError";
  /** The field at fault, as the protocol's text names it. */
  readonly field: string;

  constructor(field: string, message: string) {
    super(message);
    this.field = field;
  }
}

/** A value that a request must not have: its sender refuses to send it, its receiver answers with `code`. */
export class RequestError extends FieldError {
  override readonly name = "RequestError";
  readonly code: ErrorCode;

  constructor(code: ErrorCode, field: string, message: string) {
    super(field, message);
    this.code = code;
  }
}

/** What a server sent breaks a rule: the client must close the connection. */
export class ProtocolError extends Error {
  override readonly name = "ProtocolError";
  /** The id of the rule, such as W1-FRM-006. */
  readonly requirement: string;
  /** The field at fault, as the protocol's text names it. */
  readonly field: string;

  constructor(requirement: string, field: string, message: string) {
    super(message);
    this.requirement = requirement;
    this.field = field;
  }
}

/** How a connection stands after the bytes that came. After `closed` no further byte is looked at. */
export type StreamState = "between-frames" | "inside-a-frame" | "closed";

// ---- Requests -------------------------------------------------------------------------------------------------

/** One of the three prompts of a request that was received. */
export interface Prompt {
  /** Where it begins, in bytes from the start of prompt_data. */
  readonly offset: number;
  /** Bytes of UTF-8: 1 to 2048. */
  readonly length: number;
  readonly text: string;
}

/** A request that a server can serve: {@link ServerReader} makes no other. */
export interface Request {
  readonly requestId: bigint;
  /** 0: Stable Diffusion 3.5. */
  readonly modelId: 0;
  /** Pixels: 64 to 2048, a multiple of 64. */
  readonly width: number;
  /** Pixels: 64 to 2048, a multiple of 64. */
  readonly height: number;
  /** 1 to 100. */
  readonly steps: number;
  /** 0.0 to 20.0, never -0.0. */
  readonly cfgScale: number;
  /** All 64 bits count; 0 leaves the choice to the server (W1-REQ-009, W1-REQ-010). */
  readonly seed: bigint;
  readonly clipL: Prompt;
  readonly clipG: Prompt;
  readonly t5: Prompt;
}

/** A request to send. The ranges are those of {@link Request}. */
export interface RequestToSend {
  readonly requestId: bigint;
  readonly width: number;
  readonly height: number;
  readonly steps: number;
  readonly cfgScale: number;
  readonly seed: bigint;
  /** One text for all three encoders, which is what most clients want (W1-REQ-004), or one for each. */
  readonly prompt: string | { readonly clipL: string; readonly clipG: string; readonly t5: string };
}

/**
 * The frame of a request for model 0.
 *
 * @throws {FieldError} if a value is out of its range (W1-REQ-001, W1-REQ-003).
 */
export function encodeRequest(request: RequestToSend): Uint8Array {
  const { requestId, width, height, steps, cfgScale, seed, prompt } = request;
  checkU64("request_id", requestId);
  checkSide("width", width);
  checkSide("height", height);
  checkSteps(steps);
  checkCfgScale(cfgScale);
  checkU64("seed", seed);
  const texts = typeof prompt === "string" ? { clipL: prompt, clipG: prompt, t5: prompt } : prompt;
  const prompts = [
    promptBytes("clip_l", texts.clipL),
    promptBytes("clip_g", texts.clipG),
    promptBytes("t5", texts.t5),
  ];

  const promptDataLen = prompts.reduce((sum, bytes) => sum + bytes.length, 0);
  // Three prompts of 2048 bytes are the longest payload there is (W1-FRM-001).
  const { frame, payload } = newFrame(REQUEST, REQUEST_FIXED_LEN + promptDataLen);
  payload.setBigUint64(0, requestId);
  payload.setUint32(8, 0); // model_id
  payload.setUint32(12, width);
  payload.setUint32(16, height);
  payload.setUint32(20, steps);
  payload.setFloat32(24, cfgScale + 0); // -0.0 becomes 0.0
  payload.setBigUint64(28, seed);
  let offset = 0; // each begins where the one before it ends (W1-REQ-002, W1-REQ-004)
  for (const [index, bytes] of prompts.entries()) {
    payload.setUint32(36 + 8 * index, offset);
    payload.setUint32(40 + 8 * index, bytes.length);
    frame.set(bytes, HEADER_LEN + REQUEST_FIXED_LEN + offset);
    offset += bytes.length;
  }
  return frame;
}

/**
 * Makes a request of a payload, in the order of checks from step 5 on (W1-VAL-001).
 *
 * @param kept the payload, or its first 60 bytes if it is longer than any request
 * @param payloadLen how long it is
 * @throws {RequestError} for the first check that fails
 */
function decodeRequest(kept: Uint8Array, payloadLen: number): Request {
  const payload = viewOf(kept);
  checkPayloadLen(payloadLen, REQUEST_COMMON_LEN); // step 5
  const modelId = payload.getUint32(8);
  if (modelId !== 0) {
    throw new RequestError(ErrorCode.INVALID_MODEL_ID, "model_id", `model_id is ${modelId}; it must be 0`);
  }
  checkPayloadLen(payloadLen, REQUEST_FIXED_LEN); // step 7
  const width = checkSide("width", payload.getUint32(12));
  const height = checkSide("height", payload.getUint32(16));
  const steps = checkSteps(payload.getUint32(20));
  const cfgScale = checkCfgScale(payload.getFloat32(24)) + 0; // -0.0 becomes 0.0 (W1-REQ-007)
  const fields = [
    { name: "clip_l", offset: payload.getUint32(36), length: payload.getUint32(40) },
    { name: "clip_g", offset: payload.getUint32(44), length: payload.getUint32(48) },
    { name: "t5", offset: payload.getUint32(52), length: payload.getUint32(56) },
  ] as const;
  for (const { name, length } of fields) checkPromptLen(name, length); // step 11
  const promptDataLen = payloadLen - REQUEST_FIXED_LEN;
  if (promptDataLen > MAX_PROMPT_DATA_LEN) {
    throw new RequestError(
      ErrorCode.INVALID_PROMPT,
      "payload_len",
      `payload_len is ${payloadLen}; it must be at most ${MAX_REQUEST_PAYLOAD}, with 6144 bytes of prompt_data`,
    );
  }
  // Ranges may overlap (W1-REQ-005), and what none of them covers is not looked at (W1-REQ-006).
  for (const { name, offset, length } of fields) {
    // The sum of two u32 is exact in a number (W1-VAL-002).
    if (offset + length > promptDataLen) {
      throw new RequestError(
        ErrorCode.INVALID_PROMPT,
        `${name}_offset`,
        `${name}_offset is ${offset} and ${name}_length ${length}; ` +
          `the range must lie within the ${promptDataLen} bytes of prompt_data`,
      );
    }
  }
  const prompt = ({ name, offset, length }: (typeof fields)[number]): Prompt => {
    const start = REQUEST_FIXED_LEN + offset;
    return { offset, length, text: promptText(name, kept.subarray(start, start + length)) };
  };
  const clipL = prompt(fields[0]); // step 14: all three before any of step 15
  const clipG = prompt(fields[1]);
  const t5 = prompt(fields[2]);
  checkNoNul("clip_l", clipL.text);
  checkNoNul("clip_g", clipG.text);
  checkNoNul("t5", t5.text);
  const requestId = payload.getBigUint64(0);
  return { requestId, modelId, width, height, steps, cfgScale, seed: payload.getBigUint64(28), clipL, clipG, t5 };
}

function checkPayloadLen(payloadLen: number, least: number): void {
  if (payloadLen < least) {
    throw new RequestError(
      ErrorCode.MALFORMED,
      "payload_len",
      `payload_len is ${payloadLen}; a request must have at least ${least} bytes here`,
    );
  }
}

function isSide(value: number): boolean {
  return Number.isInteger(value) && value >= 64 && value <= 2048 && value % 64 === 0;
}

function sideFault(field: string, value: number): string {
  return `${field} is ${value}; it must be 64 to 2048 and a multiple of 64`;
}

function checkSide(field: "width" | "height", value: number): number {
  if (!isSide(value)) {
    throw new RequestError(ErrorCode.INVALID_DIMENSIONS, field, sideFault(field, value));
  }
  return value;
}

function checkSteps(value: number): number {
  if (!(Number.isInteger(value) && value >= 1 && value <= 100)) {
    throw new RequestError(ErrorCode.INVALID_STEPS, "steps", `steps is ${value}; it must be 1 to 100`);
  }
  return value;
}

function checkCfgScale(value: number): number {
  // Written such that NaN does not pass.
  if (!(value >= 0 && value <= 20)) {
    throw new RequestError(ErrorCode.INVALID_CFG, "cfg_scale", `cfg_scale is ${value}; it must be 0.0 to 20.0`);
  }
  return value;
}

function checkPromptLen(name: string, length: number): void {
  if (length < 1 || length > MAX_PROMPT_LEN) {
    throw new RequestError(
      ErrorCode.INVALID_PROMPT,
      `${name}_length`,
      `${name}_length is ${length}; it must be 1 to ${MAX_PROMPT_LEN} bytes`,
    );
  }
}

// What is wrong within a prompt is said without the value: that would be a part of the prompt (W1-ERR-005).

function checkNoNul(name: string, text: string): void {
  if (text.includes("\0")) {
    throw new RequestError(ErrorCode.INVALID_PROMPT, name, `${name} has a byte 0; it must have none`);
  }
}

function promptText(name: string, bytes: Uint8Array): string {
  try {
    return strictUtf8.decode(bytes);
  } catch {
    throw new RequestError(ErrorCode.INVALID_PROMPT, name, `${name} is not UTF-8; it must be`);
  }
}

function promptBytes(name: string, text: string): Uint8Array {
  if (LONE_SURROGATE.test(text)) {
    throw new RequestError(ErrorCode.INVALID_PROMPT, name, `${name} has half of a character; it must have a UTF-8 form`);
  }
  const bytes = utf8.encode(text);
  checkPromptLen(name, bytes.length);
  checkNoNul(name, text);
  return bytes;
}

// ---- Responses ------------------------------------------------------------------------------------------------

/** 3: RGB. 4: RGBA. */
export type Channels = 3 | 4;

/** What comes before the pixels. */
export interface ResponseHead {
  readonly kind: "response";
  readonly requestId: bigint;
  readonly status: 200;
  /** Milliseconds that generation took. */
  readonly generationTimeMs: number;
  /** Pixels: 64 to 2048, a multiple of 64. */
  readonly imageWidth: number;
  /** Pixels: 64 to 2048, a multiple of 64. */
  readonly imageHeight: number;
  readonly channels: Channels;
  /** imageWidth · imageHeight · channels */
  readonly imageDataLen: number;
}

/** An image that a client asked for. */
export interface Response extends ResponseHead {
  /** Rows from the top, pixels from the left, one byte a channel: red, green, blue, alpha. Nothing between them. */
  readonly imageData: Uint8Array;
  /** How many bytes of a later version came after the pixels, and were ignored (W1-RSP-007). */
  readonly trailing: number;
}

/**
 * The 48 bytes before the pixels. The pixels follow: imageWidth · imageHeight · channels bytes.
 *
 * @param generationTimeMs milliseconds without the time that the request waited; what is too long for a u32 is sent
 *   as the largest (W1-RSP-003)
 * @throws {FieldError} if a value is out of its range
 */
export function encodeResponseHead({
  requestId,
  generationTimeMs,
  imageWidth,
  imageHeight,
  channels,
}: Omit<ResponseHead, "kind" | "status" | "imageDataLen">): Uint8Array {
  checkU64("request_id", requestId);
  if (!(generationTimeMs >= 0)) {
    throw new FieldError("generation_time_ms", `generation_time_ms is ${generationTimeMs}; it must be 0 or more`);
  }
  for (const [field, value] of [["image_width", imageWidth], ["image_height", imageHeight]] as const) {
    if (!isSide(value)) throw new FieldError(field, sideFault(field, value));
  }
  if (!isChannels(channels)) throw new FieldError("channels", channelsFault(channels));

  const imageDataLen = imageWidth * imageHeight * channels;
  const head = new Uint8Array(HEADER_LEN + RESPONSE_FIXED_LEN);
  writeHeader(viewOf(head), RESPONSE, RESPONSE_FIXED_LEN + imageDataLen);
  const payload = viewOf(head.subarray(HEADER_LEN));
  payload.setBigUint64(0, requestId); // W1-RSP-001
  payload.setUint32(8, 200); // W1-RSP-004, like image_data_len
  payload.setUint32(12, Math.min(Math.floor(generationTimeMs), MAX_U32));
  payload.setUint32(16, imageWidth);
  payload.setUint32(20, imageHeight);
  payload.setUint32(24, channels);
  payload.setUint32(28, imageDataLen);
  return head;
}

/** Checks the fixed fields of a response before anything relies on them (W1-RSP-005, W1-RSP-006). */
function decodeResponseHead(payload: DataView, payloadLen: number): ResponseHead {
  const refuse = (field: string, message: string) => new ProtocolError("W1-RSP-005", field, message);
  const status = payload.getUint32(8);
  if (status !== 200) throw refuse("status", `status of a response is ${status}; it must be 200`);
  const imageWidth = payload.getUint32(16);
  if (!isSide(imageWidth)) throw refuse("image_width", sideFault("image_width", imageWidth));
  const imageHeight = payload.getUint32(20);
  if (!isSide(imageHeight)) throw refuse("image_height", sideFault("image_height", imageHeight));
  const channels = payload.getUint32(24);
  if (!isChannels(channels)) throw refuse("channels", channelsFault(channels));
  const imageDataLen = payload.getUint32(28);
  const expected = imageWidth * imageHeight * channels; // at most 2^24, since all three were checked
  if (imageDataLen !== expected) {
    throw refuse("image_data_len", `image_data_len is ${imageDataLen}; it must be ${expected}`);
  }
  if (payloadLen < RESPONSE_FIXED_LEN + imageDataLen) {
    throw new ProtocolError(
      "W1-RSP-006",
      "payload_len",
      `payload_len is ${payloadLen}; it must be at least ${RESPONSE_FIXED_LEN + imageDataLen}`,
    );
  }
  return {
    kind: "response",
    requestId: payload.getBigUint64(0),
    status,
    generationTimeMs: payload.getUint32(12),
    imageWidth,
    imageHeight,
    channels,
    imageDataLen,
  };
}

function isChannels(value: number): value is Channels {
  return value === 3 || value === 4;
}

function channelsFault(value: number): string {
  return `channels is ${value}; it must be 3 or 4`;
}

// ---- Errors ---------------------------------------------------------------------------------------------------

/** What comes before the text of an error. */
export interface ErrorHead {
  readonly kind: "error";
  /** The request's id, or 0 if the server could not tell it, has no place or gave the stream up. */
  readonly requestId: bigint;
  readonly status: ErrorStatus;
  /** Any u32: see {@link errorName} for those that this version knows. */
  readonly errorCode: number;
  /** Bytes of the text: any u16. */
  readonly errorMsgLen: number;
}

/** Why there is no image. */
export interface ErrorAnswer extends ErrorHead {
  /** The text as it came, which is not to be trusted: see {@link showErrorMsg}. */
  readonly errorMsg: Uint8Array;
  /** How many bytes of a later version came after the text, and were ignored (W1-ERR-009). */
  readonly trailing: number;
}

/**
 * The frame of an error; its status is the one that belongs to the code (W1-ERR-002).
 *
 * @param requestId that of the request, or 0 (W1-ERR-001)
 * @param errorMsg what is wrong, with no part of a prompt in it (W1-ERR-005): at most 255 bytes of UTF-8
 * @throws {FieldError} if a value is out of its range
 */
export function encodeError(requestId: bigint, errorCode: ErrorCode, errorMsg: string): Uint8Array {
  checkU64("request_id", requestId);
  if (errorName(errorCode) === undefined) {
    throw new FieldError("error_code", `error_code is ${errorCode}; it must be one that version ${VERSION} has`);
  }
  if (LONE_SURROGATE.test(errorMsg)) {
    throw new FieldError("error_msg", "error_msg has half of a character; it must have a UTF-8 form");
  }
  const text = utf8.encode(errorMsg);
  if (text.length > MAX_ERROR_MSG_LEN) {
    throw new FieldError("error_msg", `error_msg has ${text.length} bytes; it must have at most ${MAX_ERROR_MSG_LEN}`);
  }
  const { frame, payload } = newFrame(ERROR, ERROR_FIXED_LEN + text.length);
  payload.setBigUint64(0, requestId);
  payload.setUint32(8, statusOf(errorCode));
  payload.setUint32(12, errorCode);
  payload.setUint16(16, text.length);
  frame.set(text, HEADER_LEN + ERROR_FIXED_LEN);
  return frame;
}

/** Checks the fixed fields of an error. Its error_code may be any (W1-ERR-006). */
function decodeErrorHead(payload: DataView, payloadLen: number): ErrorHead {
  const status = payload.getUint32(8);
  if (status !== 400 && status !== 500) {
    throw new ProtocolError("W1-ERR-007", "status", `status of an error is ${status}; it must be 400 or 500`);
  }
  const errorMsgLen = payload.getUint16(16);
  if (payloadLen < ERROR_FIXED_LEN + errorMsgLen) {
    throw new ProtocolError(
      "W1-ERR-008",
      "payload_len",
      `payload_len is ${payloadLen}; it must be at least ${ERROR_FIXED_LEN + errorMsgLen}`,
    );
  }
  return { kind: "error", requestId: payload.getBigUint64(0), status, errorCode: payload.getUint32(12), errorMsgLen };
}

/**
 * The text of an error as it can be shown on one line of a terminal (W1-ERR-010): what is not UTF-8 is replaced;
 * control characters, line breaks and what turns the direction of writing are escaped, as in `\u{1b}`.
 */
export function showErrorMsg(errorMsg: Uint8Array): string {
  const unfit = /[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}]/gu;
  return lenientUtf8.decode(errorMsg).replace(unfit, (c) => `\\u{${c.charCodeAt(0).toString(16)}}`);
}

// ---- Reading a connection -------------------------------------------------------------------------------------

/** A frame that a server does not serve, with its answer. */
export interface Refusal {
  readonly kind: "refusal";
  readonly requestId: bigint;
  readonly errorCode: ErrorCode;
  readonly errorMsg: string;
  /** The error frame to send. */
  readonly answer: Uint8Array;
  /** Whether the connection is to be closed once the answer is written. If not, it must be kept (W1-CON-005). */
  readonly close: boolean;
}

/** What a server has to answer. */
export type Question = ({ readonly kind: "request" } & Request) | Refusal;

/**
 * What comes from one client, read by a server.
 *
 * It keeps at most one request's frame, 6,220 bytes; what is longer is skipped and not stored (W1-FRM-003).
 */
export class ServerReader {
  #header = new Part(HEADER_LEN);
  #payload: Part | undefined;
  #closed = false;

  get state(): StreamState {
    if (this.#closed) return "closed";
    return this.#payload === undefined && this.#header.untouched ? "between-frames" : "inside-a-frame";
  }

  /**
   * Takes the next bytes of the connection, cut anywhere (W1-TRN-001), and gives what has become whole, one after
   * the other. The bytes are looked at only as far as the caller asks for more, so a server can wait until it has
   * answered one question before it asks for the next. It has to come to the end before the next call, and must not
   * change the bytes until then.
   */
  *read(chunk: Uint8Array): Generator<Question, void, undefined> {
    let at = 0;
    while (!this.#closed) {
      if (this.#payload === undefined) {
        at = this.#header.take(chunk, at);
        if (!this.#header.whole) return;
        const { magic, payloadLen } = decodeHeader(this.#header.kept);
        const unreadable = streamFault(magic, payloadLen);
        if (unreadable !== undefined) {
          this.#closed = true;
          // Nobody knows where a payload begins, so there is no request_id (W1-ERR-001).
          yield refusal(0n, unreadable, true);
          return;
        }
        // Memory is taken once its size is known to be small (W1-FRM-008). Of what can't be a request the first
        // fields are enough to say why.
        this.#payload = new Part(payloadLen, payloadLen > MAX_REQUEST_PAYLOAD ? REQUEST_FIXED_LEN : payloadLen);
      }
      at = this.#payload.take(chunk, at);
      if (!this.#payload.whole) return;
      const question = judge(this.#header.kept, this.#payload.kept);
      this.#header = new Part(HEADER_LEN);
      this.#payload = undefined;
      yield question;
    }
  }
}

/** Steps 1 and 2 of the order of checks, which a connection does not survive (W1-FRM-005). */
function streamFault(magic: number, payloadLen: number): RequestError | undefined {
  if (magic !== MAGIC) {
    // After a wrong payload_len a piece of a prompt may stand here: it is not repeated (W1-FRM-004, W1-ERR-005).
    return new RequestError(ErrorCode.INVALID_MAGIC, "magic", "magic is wrong; a frame must begin with 57 45 56 45");
  }
  if (payloadLen > MAX_SKIPPED_PAYLOAD) {
    return new RequestError(
      ErrorCode.TOO_LARGE, // W1-FRM-002
      "payload_len",
      `payload_len is ${payloadLen}; it must be at most ${MAX_REQUEST_PAYLOAD}`,
    );
  }
  return undefined;
}

/** A whole frame, from step 3 of the order of checks on (W1-VAL-001). */
function judge(header: Uint8Array, kept: Uint8Array): Question {
  const { version, msgType, payloadLen } = decodeHeader(header);
  try {
    if (version !== VERSION) {
      throw new RequestError(
        ErrorCode.UNSUPPORTED_VERSION,
        "version",
        `version is ${version}; it must be ${VERSION}`,
      );
    }
    if (msgType !== REQUEST) {
      const shown = msgType.toString(16).padStart(4, "0");
      throw new RequestError(ErrorCode.UNSUPPORTED_TYPE, "msg_type", `msg_type is 0x${shown}; it must be 0x0001`);
    }
    return { kind: "request", ...decodeRequest(kept, payloadLen) };
  } catch (fault) {
    if (!(fault instanceof RequestError)) throw fault;
    return refusal(kept.length >= 8 ? viewOf(kept).getBigUint64(0) : 0n, fault, false); // W1-ERR-001
  }
}

/** Answers in version 1, also to frames of other versions (W1-VER-002, W1-VER-003). */
function refusal(requestId: bigint, { code, message }: RequestError, close: boolean): Refusal {
  const answer = encodeError(requestId, code, message);
  return { kind: "refusal", requestId, errorCode: code, errorMsg: message, answer, close };
}

/** What a client gets. */
export type Answer = Response | ErrorAnswer;

/**
 * What comes from a server, read by a client.
 *
 * Memory for pixels is taken when the fields before them have told how many there are, and were found right.
 */
export class ClientReader {
  #header = new Part(HEADER_LEN);
  #fields: Part | undefined;
  #head: ResponseHead | ErrorHead | undefined;
  #data = new Part(0);
  #closed = false;

  get state(): StreamState {
    if (this.#closed) return "closed";
    return this.#fields === undefined && this.#header.untouched ? "between-frames" : "inside-a-frame";
  }

  /** What is known of the answer that is on its way, once its fixed fields are there. */
  get head(): ResponseHead | ErrorHead | undefined {
    return this.#head;
  }

  /**
   * Takes the next bytes of the connection, cut anywhere (W1-TRN-001), and gives the answers that have become whole,
   * in the order in which they came; request_id tells to what (W1-CON-003). The caller has to come to the end before
   * the next call, and must not change the bytes until then.
   *
   * @throws {ProtocolError} when the connection must be closed
   */
  *read(chunk: Uint8Array): Generator<Answer, void, undefined> {
    let at = 0;
    while (!this.#closed) {
      if (this.#fields === undefined) {
        at = this.#header.take(chunk, at);
        if (!this.#header.whole) return;
        const fixedLen = this.#orClose(() => checkAnswerHeader(this.#header.kept));
        this.#fields = new Part(fixedLen);
      }
      if (this.#head === undefined) {
        at = this.#fields.take(chunk, at);
        if (!this.#fields.whole) return;
        const fields = this.#fields.kept;
        const { msgType, payloadLen } = decodeHeader(this.#header.kept);
        const decode = msgType === RESPONSE ? decodeResponseHead : decodeErrorHead;
        this.#head = this.#orClose(() => decode(viewOf(fields), payloadLen));
        const dataLen = this.#head.kind === "response" ? this.#head.imageDataLen : this.#head.errorMsgLen;
        this.#data = new Part(payloadLen - fields.length, dataLen);
      }
      at = this.#data.take(chunk, at);
      if (!this.#data.whole) return;
      const { kept, skipped: trailing } = this.#data;
      const answer: Answer =
        this.#head.kind === "response"
          ? { ...this.#head, imageData: kept, trailing }
          : { ...this.#head, errorMsg: kept, trailing };
      this.#header = new Part(HEADER_LEN);
      this.#fields = undefined;
      this.#head = undefined;
      this.#data = new Part(0); // the pixels are the caller's now
      yield answer;
    }
  }

  #orClose<T>(decode: () => T): T {
    try {
      return decode();
    } catch (fault) {
      this.#closed = true; // W1-RSP-008, W1-ERR-007, W1-ERR-008
      throw fault;
    }
  }
}

/** Tells how many bytes the fixed fields of an answer have, if this is the header of one. */
function checkAnswerHeader(header: Uint8Array): number {
  const { magic, version, msgType, payloadLen } = decodeHeader(header);
  if (magic !== MAGIC) {
    const shown = magic.toString(16).padStart(8, "0");
    throw new ProtocolError("W1-FRM-006", "magic", `magic is 0x${shown}; it must be 0x57455645`);
  }
  if (payloadLen > MAX_RESPONSE_PAYLOAD) {
    throw new ProtocolError(
      "W1-FRM-007",
      "payload_len",
      `payload_len is ${payloadLen}; it must be at most ${MAX_RESPONSE_PAYLOAD}`,
    );
  }
  const isError = msgType === ERROR; // of any version (W1-VER-006)
  if (!isError && msgType !== RESPONSE) {
    const shown = msgType.toString(16).padStart(4, "0");
    throw new ProtocolError("W1-FRM-010", "msg_type", `msg_type is 0x${shown}; it must be 0x0002 or 0x00ff`);
  }
  if (!isError && version !== VERSION) {
    throw new ProtocolError(
      "W1-FRM-010",
      "version",
      `version of a response is ${version}; it must be ${VERSION}`,
    );
  }
  const fixedLen = isError ? ERROR_FIXED_LEN : RESPONSE_FIXED_LEN;
  if (payloadLen < fixedLen) {
    throw new ProtocolError(
      isError ? "W1-ERR-008" : "W1-RSP-006",
      "payload_len",
      `payload_len is ${payloadLen}; it must be at least ${fixedLen}`,
    );
  }
  return fixedLen;
}

// ---- Bytes ----------------------------------------------------------------------------------------------------

/** A stretch of the stream whose length is known: its first bytes are kept, those after them skipped. */
class Part {
  readonly kept: Uint8Array;
  readonly skipped: number;
  #taken = 0;

  constructor(length: number, keep = length) {
    this.kept = new Uint8Array(keep);
    this.skipped = length - keep;
  }

  get untouched(): boolean {
    return this.#taken === 0;
  }

  get whole(): boolean {
    return this.#taken === this.kept.length + this.skipped;
  }

  /** Takes what belongs to it of `chunk` from `start` on. Returns where it stopped. */
  take(chunk: Uint8Array, start: number): number {
    const end = Math.min(chunk.length, start + this.kept.length + this.skipped - this.#taken);
    if (this.#taken < this.kept.length) {
      this.kept.set(chunk.subarray(start, Math.min(end, start + this.kept.length - this.#taken)), this.#taken);
    }
    this.#taken += end - start;
    return end;
  }
}

// A byte order mark is a part of the text like any other character. `strictUtf8` throws at what is not UTF-8.
const utf8 = new TextEncoder();
const strictUtf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const lenientUtf8 = new TextDecoder("utf-8", { ignoreBOM: true });

/** What a string may have that has no form in UTF-8. */
const LONE_SURROGATE = /\p{Surrogate}/u;

// A DataView reads and writes big-endian if nothing else is said (W1-TRN-005).
function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** reserved has no part in it: its value means nothing (W1-HDR-005). */
function decodeHeader(bytes: Uint8Array): { magic: number; version: number; msgType: number; payloadLen: number } {
  const header = viewOf(bytes);
  return {
    magic: header.getUint32(0),
    version: header.getUint16(4),
    msgType: header.getUint16(6),
    payloadLen: header.getUint32(8),
  };
}

function writeHeader(header: DataView, msgType: number, payloadLen: number): void {
  header.setUint32(0, MAGIC); // W1-HDR-001
  header.setUint16(4, VERSION); // W1-HDR-002
  header.setUint16(6, msgType);
  header.setUint32(8, payloadLen); // W1-HDR-003
  header.setUint32(12, 0); // reserved (W1-HDR-004)
}

/** A frame of zeros but for its header, and a view of its payload. */
function newFrame(msgType: number, payloadLen: number): { frame: Uint8Array; payload: DataView } {
  const frame = new Uint8Array(HEADER_LEN + payloadLen);
  writeHeader(viewOf(frame), msgType, payloadLen);
  return { frame, payload: viewOf(frame.subarray(HEADER_LEN)) };
}

function checkU64(field: "request_id" | "seed", value: bigint): void {
  if (BigInt.asUintN(64, value) !== value) {
    throw new FieldError(field, `${field} is ${value}; it must be 0 to 18446744073709551615`);
  }
}
