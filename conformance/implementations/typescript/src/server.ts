/** A small server that draws a checkerboard, whatever it is asked for: see `usage`. */

import { once } from "node:events";
import { lstat, unlink } from "node:fs/promises";
import { connect, createServer, type Server, type Socket } from "node:net";
import process from "node:process";
import { parseArgs } from "node:util";
import { isUsageFault, parseAddress, showAddress, UsageError, wholeNumber, type Address } from "./command-line.js";
import { encodeError, encodeResponseHead, ErrorCode, ServerReader, type Question } from "./weave.js";

const usage = `usage: server.js [options] ADDRESS

Listens at ADDRESS, the path of a Unix socket or host:port, and answers every request with a checkerboard of 8x8 pixels.

  --connections N   how many it serves at a time; 4096 if not given

SIGTERM and SIGINT end it: what it has begun is finished. Exit codes: 0 it was ended, 1 it can't listen, 2 wrong usage.
`;

/** How long a connection that is being closed may go on sending what nobody reads, in milliseconds. */
const LINGER_MS = 1_000;
/** How long answers may take to get written once the server is ending, in milliseconds. */
const GRACE_MS = 5_000;

// ---- The image ------------------------------------------------------------------------------------------------

const CHANNELS = 3;
const BLOCK = 8;
/** Every image is a whole number of tiles of this height, one below the other, since heights are multiples of 64. */
const TILE_HEIGHT = 64;
const tiles = new Map<number, Uint8Array>();

/** The first 64 rows of a checkerboard that is so wide. There are 32 widths, and so at most 6.5 MB of tiles. */
function tileOf(width: number): Uint8Array {
  const made = tiles.get(width);
  if (made !== undefined) return made;
  const rowLen = width * CHANNELS;
  const blockLen = BLOCK * CHANNELS;
  const bytes = new Uint8Array(TILE_HEIGHT * rowLen);
  for (let y = 0; y < TILE_HEIGHT; y++) {
    const first = Math.floor(y / BLOCK) % 2 === 0 ? blockLen : 0; // the first block in 0xFF; those around it stay 0
    for (let x = first; x < rowLen; x += 2 * blockLen) bytes.fill(0xff, y * rowLen + x, y * rowLen + x + blockLen);
  }
  tiles.set(width, bytes);
  return bytes;
}

// ---- Connections ----------------------------------------------------------------------------------------------

class Checkerboards {
  readonly #server: Server;
  readonly #limit: number;
  /** All connections, also those that are being closed. */
  readonly #open = new Set<Socket>();
  /** Those that are served and have nothing to be answered. */
  readonly #idle = new Set<Socket>();
  #served = 0;
  #ending = false;

  constructor(limit: number) {
    this.#limit = limit;
    // A client may end its direction and still gets its answers (W1-CON-010).
    this.#server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
      this.#accept(socket);
    });
  }

  /** Listens, and tells where: port 0 leaves the port to the system. */
  async listen(address: Address): Promise<Address> {
    // A mode of 0600 from the first moment (W1-TRN-002). Node.js can't ask the kernel for a peer's credentials
    // (W1-TRN-003); the socket's mode, and the folder's, are what keeps other users out.
    process.umask(0o177);
    try {
      await this.#listenOnce(address);
    } catch (fault) {
      if (!("path" in address && (fault as NodeJS.ErrnoException).code === "EADDRINUSE")) throw fault;
      await removeStale(address.path);
      await this.#listenOnce(address);
    }
    this.#server.on("error", (fault) => {
      console.error(`server: a connection could not be accepted: ${fault.message}`);
    });
    const bound = this.#server.address();
    return bound === null || typeof bound === "string" ? address : { ...address, port: bound.port };
  }

  async #listenOnce(address: Address): Promise<void> {
    this.#server.listen({ ...address, backlog: 1024 });
    try {
      await once(this.#server, "listening");
    } catch (fault) {
      // Node.js says "permission denied" of a folder that isn't there, too.
      if (!("path" in address && (fault as NodeJS.ErrnoException).code === "EACCES")) throw fault;
      throw new Error("its folder is not there, or can't be written to", { cause: fault });
    }
  }

  /** Accepts no more, finishes what was begun, refuses the rest (W1-CON-009). The process ends after the last one. */
  end(): void {
    if (this.#ending) return;
    this.#ending = true;
    this.#server.close(); // removes the socket
    for (const socket of this.#idle) this.#finish(socket);
    setTimeout(() => {
      for (const socket of this.#open) socket.destroy();
    }, GRACE_MS).unref();
  }

  #accept(socket: Socket): void {
    this.#open.add(socket);
    socket.once("close", () => this.#open.delete(socket));
    // What goes wrong on a connection ends it alone (W1-CON-012): the loop that reads it is told as well.
    socket.on("error", () => socket.destroy());
    if (this.#open.size > 2 * this.#limit) {
      socket.destroy(); // too many even to be refused (W1-SEC-002)
    } else if (this.#served >= this.#limit) {
      socket.write(encodeError(0n, ErrorCode.BUSY, `${this.#limit} connections are open; try again later`));
      this.#finish(socket); // W1-CON-008
      socket.resume();
    } else {
      this.#served += 1;
      void this.#serve(socket).finally(() => {
        this.#served -= 1;
        this.#idle.delete(socket);
      });
    }
  }

  /**
   * Answers the requests of one connection in their order. It reads on only when the answers so far are with the
   * kernel, so a client that takes nothing costs one chunk of its bytes and no more (W1-SEC-002).
   */
  async #serve(socket: Socket): Promise<void> {
    const reader = new ServerReader();
    this.#idle.add(socket);
    try {
      for await (const chunk of socket as AsyncIterable<Uint8Array>) {
        if (socket.writableEnded) continue; // being closed: what still comes is dropped
        this.#idle.delete(socket);
        for (const question of reader.read(chunk)) await send(socket, this.#answer(question));
        if (reader.state === "closed" || this.#ending) this.#finish(socket);
        else this.#idle.add(socket);
      }
    } catch {
      // The peer is gone, or was too slow at the end; there is nobody to tell.
      socket.destroy();
    }
  }

  /** An answer, in pieces of which none is a copy of pixels. */
  #answer(question: Question): readonly Uint8Array[] {
    if (question.kind === "refusal") return [question.answer];
    const { requestId, width, height } = question;
    if (this.#ending) return [encodeError(requestId, ErrorCode.SHUTTING_DOWN, "the server is ending")];
    const head = encodeResponseHead({
      requestId,
      generationTimeMs: 0,
      imageWidth: width,
      imageHeight: height,
      channels: CHANNELS,
    });
    return [head, ...Array<Uint8Array>(height / TILE_HEIGHT).fill(tileOf(width))];
  }

  /**
   * Ends our direction and waits for the peer to end its own, but not for long. To close at once, with bytes unread,
   * would make the kernel take back what was written last.
   */
  #finish(socket: Socket): void {
    this.#idle.delete(socket);
    socket.end();
    const timer = setTimeout(() => socket.destroy(), LINGER_MS);
    socket.once("close", () => {
      clearTimeout(timer);
    });
  }
}

/** Waits until the kernel has taken all of it. */
async function send(socket: Socket, pieces: readonly Uint8Array[]): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    socket.cork();
    for (const piece of pieces.slice(0, -1)) socket.write(piece);
    socket.write(pieces.at(-1) ?? "", (fault) => {
      if (fault) reject(fault);
      else resolve();
    });
    socket.uncork();
  });
}

/** Removes the socket of a server that is gone, and nothing else. */
async function removeStale(path: string): Promise<void> {
  if (!(await lstat(path)).isSocket()) throw new Error("there is a file that is not a socket");
  const socket = connect({ path });
  try {
    await once(socket, "connect");
  } catch (fault) {
    if ((fault as NodeJS.ErrnoException).code !== "ECONNREFUSED") throw fault;
    await unlink(path);
    return;
  } finally {
    socket.destroy();
  }
  throw new Error("another server listens there");
}

// ---- The program ----------------------------------------------------------------------------------------------

function parseCommandLine(argv: string[]): { address: Address; limit: number } | undefined {
  const { values, positionals } = parseArgs({
    args: argv,
    allowPositionals: true,
    options: {
      connections: { type: "string", default: "4096" },
      help: { type: "boolean", short: "h" },
    },
  });
  if (values.help === true) return undefined;
  const [address, ...others] = positionals;
  if (others.length > 0) throw new UsageError("there is more than one ADDRESS");
  return { address: parseAddress(address), limit: wholeNumber("--connections", values.connections, 1, 65_536) };
}

async function main(argv: string[]): Promise<number> {
  let asked: ReturnType<typeof parseCommandLine>;
  try {
    asked = parseCommandLine(argv);
  } catch (fault) {
    if (!isUsageFault(fault)) throw fault;
    console.error(`server: ${fault.message}\n\n${usage}`);
    return 2;
  }
  if (asked === undefined) {
    console.log(usage);
    return 0;
  }
  const server = new Checkerboards(asked.limit);
  for (const signal of ["SIGTERM", "SIGINT"]) {
    process.on(signal, () => {
      server.end();
    });
  }
  try {
    console.error(`listening on ${showAddress(await server.listen(asked.address))}`);
    return 0; // when the last connection is closed
  } catch (fault) {
    console.error(`server: can't listen on ${showAddress(asked.address)}: ${(fault as Error).message}`);
    return 1;
  }
}

process.exitCode = await main(process.argv.slice(2));
