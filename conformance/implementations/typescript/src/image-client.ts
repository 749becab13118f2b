/** What programs use: a Client has a server make an Image. For Node.js. */

import { randomInt } from "node:crypto";
import { lstatSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { isAbsolute, join, normalize } from "node:path";
import { setImmediate } from "node:timers/promises";
import { parseAddress, showAddress, type Address } from "./command-line.js";
import { Image } from "./image.js";
import {
  ClientReader,
  encodeRequest,
  ErrorCode,
  errorName,
  MAX_PROMPT_LEN,
  ProtocolError,
  RequestError,
  showErrorMsg,
  type Answer,
  type ErrorAnswer,
  type RequestToSend,
} from "./weave.js";

/** Of a weaved for all users of a machine. */
const SYSTEM_SOCKET = "/run/weave/weave.sock";

/**
 * Where weaved listens and the command weave looks: $WEAVE_SOCKET, else $XDG_RUNTIME_DIR/weave/weave.sock, or
 * ~/.weave/weave.sock without that variable. If nothing is there, `system`, if there is something.
 */
export function defaultAddress(env: NodeJS.ProcessEnv = process.env, system = SYSTEM_SOCKET): string {
  const { WEAVE_SOCKET: named = "", XDG_RUNTIME_DIR: folder = "", HOME: home = "" } = env;
  if (named.trim() !== "") return named.trim();
  let usual: string | undefined;
  if (isAbsolute(folder)) usual = join(folder, "weave", "weave.sock");
  else if (isAbsolute(home) && normalize(home) !== "/") usual = join(home, ".weave", "weave.sock"); // "/": can't log in
  if (usual !== undefined && (isThere(usual) || !isThere(system))) return usual;
  if (isThere(system)) return system;
  const nothing = `WEAVE_SOCKET, XDG_RUNTIME_DIR and HOME say nothing, and nothing is at ${system}`;
  throw new Error(`where the server listens isn't known: ${nothing}; name its socket`);
}

/** Whether something is there, be it that this user may not look. */
function isThere(path: string): boolean {
  try {
    lstatSync(path);
    return true;
  } catch (fault) {
    return (fault as NodeJS.ErrnoException).code === "EACCES";
  }
}

/** What to draw, and how. */
export interface Options {
  /** Pixels: 64 to 2048, a multiple of 64; 512 if not given. */
  readonly width?: number;
  /** Pixels: 64 to 2048, a multiple of 64; 512 if not given. */
  readonly height?: number;
  /** 1 to 100; 28 if not given. */
  readonly steps?: number;
  /** 0.0 to 20.0; 7 if not given. */
  readonly cfgScale?: number;
  /** A whole number of 64 bits; if it is 0 or not given, the client draws one, of 32 bits. */
  readonly seed?: bigint | number;
  /** Ends the call and closes its connection: a server may give up an image for which nobody waits any more. */
  readonly signal?: AbortSignal;
}

/** The server's answer is an error. */
export class NoImage extends Error {
  override readonly name = "NoImage";
  /** One of {@link ErrorCode}, or one that this version doesn't know. */
  readonly code: number;
  /** 400 if the request is to blame, 500 if it is the server: then the same request may succeed later. */
  readonly status: 400 | 500;

  constructor({ errorCode, errorMsg, status }: ErrorAnswer) {
    super(`${errorName(errorCode) ?? `error ${errorCode}`}: ${showErrorMsg(errorMsg)}`);
    this.code = errorCode;
    this.status = status;
  }
}

/** Nobody answers at the address, or not this user; nothing was sent. `cause` is what the system says. */
export class Unreachable extends Error {
  override readonly name = "Unreachable";

  constructor(address: string, cause: Error) {
    const { code } = cause as NodeJS.ErrnoException;
    const why = { ENOENT: "nothing is there", ECONNREFUSED: "connection refused", EACCES: "permission denied" }[code ?? ""];
    const todo =
      code === "EACCES"
        ? "only some users may connect there: weaved lets further ones in with --allow-uids or --allow-gids"
        : "start weaved, or name the address of one that runs";
    super(`no server answers at ${address} (${why ?? cause.message}); ${todo}`, { cause });
  }
}

/** The server closed a connection before anything of an answer came. */
class HungUp extends Error {}

/**
 * Asks a server for images. Any number of calls may be under way: each has a connection of its own, and leaves it to the
 * next one. If the server has closed a connection that was idle, the request is sent once more on a new one, unless
 * anything of an answer had come: that is safe, since it always has a seed.
 */
export class Client {
  readonly #address: Address;
  readonly #idle: Connection[] = [];
  #lastId = 0n;

  /** @param address the path of a Unix socket, host:port or tcp://host:port; without it, where weaved listens */
  constructor(address = defaultAddress()) {
    this.#address = parseAddress(address);
  }

  /**
   * Has one image made and waits for it.
   *
   * @param prompt 1 to 2048 bytes of UTF-8
   * @throws {RequestError} or {FieldError} before anything is sent; {NoImage} if the server answers with an error;
   *   {ProtocolError} if it breaks the protocol; {Unreachable}; the signal's reason; others if the connection fails
   */
  async generate(prompt: string, options: Options = {}): Promise<Image> {
    const { width = 512, height = 512, steps = 28, cfgScale = 7, signal } = options;
    const given = BigInt(options.seed ?? 0);
    const seed = given === 0n ? BigInt(randomInt(1, 2 ** 32)) : given; // 32 bits are what other programs take
    const requestId = this.#lastId + 1n;
    const request = { requestId, width, height, steps, cfgScale, seed, prompt };
    const frame = encodeInWords(request);
    this.#lastId = requestId;
    signal?.throwIfAborted();
    // What the server has said or done while a connection was idle is still to be read: the event loop gets the time.
    await setImmediate();
    await setImmediate();
    const used = this.#idle.pop();
    if (used !== undefined) {
      try {
        return await this.#ask(used, request, frame, signal);
      } catch (fault) {
        if (!(fault instanceof HungUp)) throw fault;
      }
    }
    return this.#ask(await Connection.open(this.#address, signal), request, frame, signal);
  }

  async #ask(
    connection: Connection,
    request: RequestToSend & { readonly prompt: string },
    frame: Uint8Array,
    signal: AbortSignal | undefined,
  ): Promise<Image> {
    const answer = await connection.ask(frame, request, signal);
    if (answer.kind === "error" && answer.requestId === 0n) {
      connection.close(); // the server does so, too: W1-CON-008
    } else {
      this.#idle.push(connection);
      connection.whenClosed(() => {
        const at = this.#idle.indexOf(connection);
        if (at >= 0) this.#idle.splice(at, 1);
      });
    }
    if (answer.kind === "error") throw new NoImage(answer);
    const { imageWidth, imageHeight, channels, imageData, generationTimeMs } = answer;
    return new Image(request, { width: imageWidth, height: imageHeight, channels, pixels: imageData, generationTimeMs });
  }

  /** Closes the connections that are idle. The next call would make another. */
  close(): void {
    for (const connection of this.#idle.splice(0)) connection.close();
  }
}

/** As encodeRequest, but one prompt goes to all encoders, whose names say nothing to who wrote it. */
export function encodeInWords(request: RequestToSend & { readonly prompt: string }): Uint8Array {
  try {
    return encodeRequest(request);
  } catch (fault) {
    if (!(fault instanceof RequestError && fault.field.startsWith("clip_l"))) throw fault;
    const size = Buffer.byteLength(request.prompt);
    const what =
      size === 0 || size > MAX_PROMPT_LEN
        ? `the prompt ${size === 0 ? "is empty" : `has ${size} bytes`}; it must have 1 to ${MAX_PROMPT_LEN} bytes`
        : "the prompt has a byte 0 or half of a character; it must have neither";
    throw new RequestError(ErrorCode.INVALID_PROMPT, "prompt", what);
  }
}

/** What a request waits for. */
interface Waiting {
  readonly request: RequestToSend;
  readonly settle: (answer: Answer | Error) => void;
}

/** A connection with at most one request under way. */
class Connection {
  readonly #socket: Socket;
  readonly #reader = new ClientReader();
  #waiting: Waiting | undefined;
  #whenClosed: (() => void) | undefined;
  #closed = false;

  static async open(address: Address, signal: AbortSignal | undefined): Promise<Connection> {
    const socket = connect(address);
    return new Promise((resolve, reject) => {
      const abort = (): void => {
        socket.destroy();
        reject(signal?.reason as Error);
      };
      const fail = (fault: Error): void => {
        signal?.removeEventListener("abort", abort);
        reject(new Unreachable(showAddress(address), fault));
      };
      signal?.addEventListener("abort", abort, { once: true });
      socket.once("error", fail);
      socket.once("connect", () => {
        signal?.removeEventListener("abort", abort);
        socket.removeListener("error", fail);
        resolve(new Connection(socket));
      });
    });
  }

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("data", (chunk) => this.#take(chunk));
    socket.on("error", (fault) => this.#end(fault));
    socket.on("end", () => this.#end());
    socket.on("close", () => this.#end());
  }

  /** Gives the answer to the request, image or error, and closes the connection unless it can be used again. */
  ask(frame: Uint8Array, request: RequestToSend, signal: AbortSignal | undefined): Promise<Answer> {
    return new Promise((resolve, reject) => {
      const abort = (): void => this.#end(signal?.reason as Error);
      const settle = (answer: Answer | Error): void => {
        signal?.removeEventListener("abort", abort);
        this.#waiting = undefined;
        if (answer instanceof Error) reject(answer);
        else resolve(answer);
      };
      if (this.#closed) return settle(new HungUp());
      this.#socket.ref();
      this.#waiting = { request, settle };
      signal?.addEventListener("abort", abort, { once: true });
      this.#socket.write(frame);
    });
  }

  whenClosed(then: () => void): void {
    this.#whenClosed = then;
    // An idle connection doesn't keep the program from ending.
    this.#socket.unref();
    if (this.#closed) then();
  }

  close(): void {
    this.#end();
  }

  #take(chunk: Uint8Array): void {
    const waiting = this.#waiting;
    if (waiting === undefined) return this.#end(); // whatever comes unasked, it is the end
    try {
      for (const answer of this.#reader.read(chunk)) {
        check(answer, waiting.request);
        waiting.settle(answer);
      }
    } catch (fault) {
      this.#end(fault as Error);
    }
  }

  /** For good. Whatever a write that fails is called, the server has closed. */
  #end(fault?: Error): void {
    if (this.#closed) return;
    this.#closed = true;
    const state = this.#reader.state;
    this.#socket.destroy();
    const code = (fault as NodeJS.ErrnoException | undefined)?.code;
    if (fault !== undefined && code !== "EPIPE" && code !== "ECONNRESET") this.#waiting?.settle(fault);
    else if (state === "between-frames") this.#waiting?.settle(new HungUp("the server closed the connection before its answer"));
    else this.#waiting?.settle(new Error("the server closed the connection in the middle of its answer"));
    this.#whenClosed?.();
  }
}

function check(answer: Answer, request: RequestToSend): void {
  if (answer.requestId !== request.requestId && !(answer.kind === "error" && answer.requestId === 0n)) {
    throw new ProtocolError("W1-CON-002", "request_id", `request_id is ${answer.requestId}, which was not asked`);
  }
  if (answer.kind === "response" && (answer.imageWidth !== request.width || answer.imageHeight !== request.height)) {
    const message = `the image has ${answer.imageWidth}x${answer.imageHeight} pixels; asked were ${request.width}x${request.height}`;
    throw new ProtocolError("W1-RSP-002", "image_width", message);
  }
}
