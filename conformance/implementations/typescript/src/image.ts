/** What a server has made, and the file that says how. For Node.js. */

import { randomBytes } from "node:crypto";
import { chmod, realpath, rename, rm, stat, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { deflateSync } from "node:zlib";
import { VERSION, type Channels } from "./weave.js";

/** What files say made them. */
const RELEASE = "0.1.0";

/** What an image was made of: the same makes it again. */
export interface Made {
  readonly prompt: string;
  readonly steps: number;
  readonly cfgScale: number;
  /** The one that was used, never 0. */
  readonly seed: bigint;
}

/** Pixels, and what they were made of. */
export class Image implements Made {
  readonly prompt: string;
  readonly steps: number;
  readonly cfgScale: number;
  readonly seed: bigint;
  readonly width: number;
  readonly height: number;
  /** 3 is RGB, 4 is RGBA. */
  readonly channels: Channels;
  /** Rows from the top, pixels from the left, one byte a channel. Nothing between them. */
  readonly pixels: Uint8Array;
  /** Without the time in the server's queue. */
  readonly generationTimeMs: number;

  constructor(made: Made, image: Pick<Image, "width" | "height" | "channels" | "pixels" | "generationTimeMs">) {
    this.prompt = made.prompt;
    this.steps = made.steps;
    this.cfgScale = made.cfgScale;
    this.seed = made.seed;
    this.width = image.width;
    this.height = image.height;
    this.channels = image.channels;
    this.pixels = image.pixels;
    this.generationTimeMs = image.generationTimeMs;
  }

  /** A PNG file that says how the image was made, as `weave generate` writes it, so that `weave verify` makes it again. */
  png(): Uint8Array {
    const head = Buffer.alloc(13);
    head.writeUInt32BE(this.width, 0);
    head.writeUInt32BE(this.height, 4);
    head.set([8, this.channels === 3 ? 2 : 6], 8);
    const stride = this.width * this.channels;
    const rows = Buffer.alloc((stride + 1) * this.height); // every row begins with its filter: none
    for (let y = 0; y < this.height; y += 1) {
      rows.set(this.pixels.subarray(y * stride, (y + 1) * stride), y * (stride + 1) + 1);
    }
    return Buffer.concat([
      Buffer.from("\x89PNG\r\n\x1a\n", "latin1"),
      chunk("IHDR", head),
      text("parameters", this.#parameters()),
      text("Weave", this.#recipe()),
      chunk("IDAT", deflateSync(rows)),
      chunk("IEND", Buffer.alloc(0)),
    ]);
  }

  /** The form that programs for Stable Diffusion have agreed on. */
  #parameters(): string {
    const { prompt, steps, seed, width, height } = this;
    const settings = `Steps: ${steps}, Sampler: unknown, CFG scale: ${shortest(this.cfgScale)}, Seed: ${seed}`;
    return `${prompt}\n${settings}, Size: ${width}x${height}, Version: Weave ${RELEASE}`;
  }

  /** All that it takes to make the image again. JSON.stringify can't write a seed of 64 bits. */
  #recipe(): string {
    const { prompt, width, height, steps, seed } = this;
    const scale = shortest(this.cfgScale);
    const [text, cfgScale] = [JSON.stringify(prompt), Number.isInteger(scale) ? scale.toFixed(1) : String(scale)];
    return (
      `{"protocol":${VERSION},"model_id":0,"prompt":${text},"width":${width},"height":${height},"steps":${steps},` +
      `"cfg_scale":${cfgScale},"seed":${seed},"provider":"local"}`
    );
  }

  /** Writes that PNG file, over one that is there: complete or not at all. */
  async save(path: string): Promise<void> {
    try {
      await writeWhole(path, this.png());
    } catch (fault) {
      const { code, message } = fault as NodeJS.ErrnoException;
      // The system's message would name a file that nobody has heard of.
      const why = code === undefined ? message : (message.split(",")[0] ?? message);
      throw Object.assign(new Error(`can't write ${path}: ${why}`, { cause: fault }), code === undefined ? {} : { code });
    }
  }
}

async function writeWhole(path: string, bytes: Uint8Array): Promise<void> {
  const target = await realpath(path).catch(() => path); // a link's target is what gets replaced
  const there = await stat(target).catch(() => undefined);
  if (there !== undefined && !there.isFile()) throw new Error("it is there and is no regular file");
  const part = join(dirname(target), `.weave.${randomBytes(8).toString("hex")}.part`);
  try {
    await writeFile(part, bytes, { flag: "wx" });
    if (there !== undefined) await chmod(part, there.mode & 0o777);
    await rename(part, target);
  } catch (fault) {
    await rm(part, { force: true }).catch(() => undefined); // what has failed says more
    throw fault;
  }
}

/** The number with the fewest digits that is the same one as a binary32, as which it was sent. */
function shortest(value: number): number {
  const sent = Math.fround(value);
  for (let digits = 1; digits < 9; digits += 1) {
    const short = Number(sent.toPrecision(digits));
    if (Math.fround(short) === sent) return short;
  }
  return Number(sent.toPrecision(9));
}

/** tEXt is read everywhere, but holds Latin-1 only. */
function text(keyword: string, words: string): Uint8Array {
  const isLatin1 = /^[\0-\xff]*$/.test(words);
  const [kind, between, data] = isLatin1
    ? ["tEXt", "\0", Buffer.from(words, "latin1")]
    : ["iTXt", "\0\0\0\0\0", Buffer.from(words, "utf8")];
  return chunk(kind as string, Buffer.concat([Buffer.from(keyword + (between as string)), data as Uint8Array]));
}

function chunk(kind: string, data: Uint8Array): Uint8Array {
  const bytes = Buffer.alloc(12 + data.length);
  bytes.writeUInt32BE(data.length, 0);
  bytes.write(kind, 4, "latin1");
  bytes.set(data, 8);
  bytes.writeUInt32BE(crc32(bytes.subarray(4, 8 + data.length)), 8 + data.length);
  return bytes;
}

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit += 1) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  return crc;
});

/** As PNG has it; node:zlib has one only since Node.js 20. */
function crc32(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ (CRC[(crc ^ byte) & 0xff] as number);
  return (crc ^ 0xffffffff) >>> 0;
}
