/** A small client: see `usage`. */

import { randomInt } from "node:crypto";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import process from "node:process";
import { setImmediate } from "node:timers/promises";
import { parseArgs } from "node:util";
import { isUsageFault, parseAddress, showAddress, UsageError, wholeNumber, type Address } from "./command-line.js";
import { encodeInWords } from "./image-client.js";
import { Image, type Made } from "./image.js";
import {
  ClientReader,
  errorName,
  FieldError,
  ProtocolError,
  showErrorMsg,
  type ErrorAnswer,
  type RequestToSend,
  type Response,
} from "./weave.js";

const usage = `usage: client.js [options] ADDRESS [PROMPT]

Asks the server at ADDRESS, the path of a Unix socket or host:port, for an image.

  --width PIXELS, --height PIXELS   64 to 2048, multiples of 64; 64 if not given
  --steps N                         1 to 100; 1 if not given
  --cfg-scale SCALE                 0.0 to 20.0; 7 if not given (--cfg is the same)
  --seed N                          0, if not given, draws one
  -o FILE                           writes the image as PNG that says how it was made
  --count N                         sends N requests at once, with ids from 1 on
  --timeout SECONDS                 for everything together; 30 if not given

Exit codes: 0 all images came, 1 an error from the server, 2 wrong usage or FILE can't be written, 3 the connection
failed or the server broke the protocol.
`;

interface Task {
  readonly address: Address;
  readonly requests: readonly (RequestToSend & { readonly prompt: string })[];
  readonly frames: readonly Uint8Array[];
  readonly output: string | undefined;
  readonly timeoutMs: number;
}

/** Tells what to do, or nothing if the user only wants to know how. */
function parseCommandLine(argv: string[]): Task | undefined {
  const { values, positionals } = parseArgs({
    args: argv,
    allowPositionals: true,
    options: {
      width: { type: "string", default: "64" },
      height: { type: "string", default: "64" },
      steps: { type: "string", default: "1" },
      "cfg-scale": { type: "string" },
      cfg: { type: "string", default: "7" },
      seed: { type: "string", default: "0" },
      output: { type: "string", short: "o" },
      count: { type: "string", default: "1" },
      timeout: { type: "string", default: "30" },
      help: { type: "boolean", short: "h" },
    },
  });
  if (values.help === true) return undefined;
  const [address, prompt = "a cat in space", ...others] = positionals;
  if (others.length > 0) throw new UsageError("there is more than ADDRESS and PROMPT; put quotes around the prompt");
  const { output } = values;
  const count = wholeNumber("--count", values.count, 1, 10_000);
  if (output !== undefined && count > 1) throw new UsageError("-o is for one image; leave it or --count out");
  const timeout = decimal("--timeout", values.timeout);
  if (!(timeout > 0 && timeout <= 86_400)) {
    throw new UsageError(`--timeout is ${timeout}; it must be more than 0 and at most 86400 seconds`);
  }
  if (!/^[0-9]+$/.test(values.seed)) {
    throw new UsageError(`--seed is ${JSON.stringify(values.seed)}; it must be a whole number`);
  }
  const requests = Array.from({ length: count }, (_, index) => ({
    requestId: BigInt(index + 1), // different ones tell the answers apart (W1-CON-004)
    width: decimal("--width", values.width),
    height: decimal("--height", values.height),
    steps: decimal("--steps", values.steps),
    cfgScale: decimal("--cfg-scale", values["cfg-scale"] ?? values.cfg),
    seed: BigInt(values.seed) === 0n ? BigInt(randomInt(1, 2 ** 32)) : BigInt(values.seed),
    prompt,
  }));
  // Encoded here, so that a value out of its range is found before anything is sent (W1-REQ-001).
  const frames = requests.map(encodeInWords);
  return { address: parseAddress(address), requests, frames, output, timeoutMs: 1000 * timeout };
}

function decimal(flag: string, value: string): number {
  if (!/^-?[0-9]*\.?[0-9]+$/.test(value)) throw new UsageError(`${flag} is ${JSON.stringify(value)}; it must be a number`);
  return Number(value);
}

/**
 * Sends all requests, without waiting for answers (W1-CON-001), and gives the answers as they come: each is the
 * image that was asked for, or an error. It ends when each request has its answer, or one error was for all.
 */
async function* ask(socket: Socket, { requests, frames }: Task): AsyncGenerator<Response | ErrorAnswer> {
  const waiting = new Map(requests.map((request) => [request.requestId, request]));
  const reader = new ClientReader();
  // A server without a place for us says so and closes (W1-CON-008). To write then would fail, and a socket of Node.js
  // whose writing fails drops what was to be read: so the event loop gets the time to read it first.
  await setImmediate();
  await setImmediate();
  if (socket.readableLength === 0) socket.write(Buffer.concat(frames)); // each frame whole (W1-CON-006)
  for await (const chunk of socket as AsyncIterable<Uint8Array>) {
    for (const answer of reader.read(chunk)) {
      const request = waiting.get(answer.requestId); // in any order (W1-CON-003)
      if (request !== undefined) {
        if (answer.kind === "response") checkSize(answer, request);
        waiting.delete(answer.requestId);
      } else if (answer.kind === "error" && answer.requestId === 0n) {
        waiting.clear(); // the server has no place, or gave the stream up (W1-ERR-001, W1-CON-008)
      } else {
        throw new ProtocolError("W1-RSP-001", "request_id", `request_id is ${answer.requestId}, which was not asked`);
      }
      yield answer;
      if (waiting.size === 0) return;
    }
  }
  const where = reader.state === "inside-a-frame" ? " in the middle of a frame" : "";
  throw new Error(`the server closed the connection${where}; answers missing: ${waiting.size}`);
}

function checkSize({ imageWidth, imageHeight }: Response, { width, height }: RequestToSend): void {
  if (imageWidth !== width || imageHeight !== height) {
    const message = `the image has ${imageWidth}x${imageHeight} pixels; asked were ${width}x${height}`;
    throw new ProtocolError("W1-RSP-002", "image_width", message);
  }
}

async function save(file: string, { imageWidth, imageHeight, channels, imageData, generationTimeMs }: Response, made: Made): Promise<void> {
  try {
    const image = { width: imageWidth, height: imageHeight, channels, pixels: imageData, generationTimeMs };
    await new Image(made, image).save(file);
  } catch (fault) {
    throw new UsageError(reason(fault));
  }
}

/** Does the task and tells the exit code. */
async function run(task: Task): Promise<number> {
  const socket = connect(task.address);
  const timeUp = new Error(`not all answers came within ${task.timeoutMs / 1000} seconds`);
  const timer = setTimeout(() => socket.destroy(timeUp), task.timeoutMs);
  let exitCode = 0;
  try {
    await once(socket, "connect");
    for await (const answer of ask(socket, task)) {
      if (answer.kind === "error") {
        const name = errorName(answer.errorCode) ?? `code ${answer.errorCode}`;
        const said = showErrorMsg(answer.errorMsg);
        console.error(`request ${answer.requestId}: error ${answer.status}, ${name}: ${said}`);
        exitCode = 1;
      } else {
        const { requestId, imageWidth, imageHeight, channels, generationTimeMs } = answer;
        const request = task.requests[Number(requestId) - 1] as (typeof task.requests)[number];
        const size = `${imageWidth}x${imageHeight}x${channels}`;
        console.log(`request ${requestId}: ${size} in ${generationTimeMs} ms, seed ${request.seed}`);
        if (task.output !== undefined) await save(task.output, answer, request);
      }
    }
  } finally {
    clearTimeout(timer);
    socket.destroy();
  }
  return exitCode;
}

function reason(fault: unknown): string {
  if (fault instanceof ProtocolError) return `${fault.message} (${fault.requirement})`;
  // Where a host has several addresses, node:net has an error for each, and no text for all of them.
  if (fault instanceof AggregateError && fault.message === "") return fault.errors.map(reason).join("; ");
  return fault instanceof Error ? fault.message : String(fault);
}

async function main(argv: string[]): Promise<number> {
  let task: Task | undefined;
  try {
    task = parseCommandLine(argv);
  } catch (fault) {
    if (!isUsageFault(fault) && !(fault instanceof FieldError)) throw fault;
    console.error(`client: ${fault.message}\n\n${usage}`);
    return 2;
  }
  if (task === undefined) {
    console.log(usage);
    return 0;
  }
  try {
    return await run(task);
  } catch (fault) {
    console.error(`client: ${showAddress(task.address)}: ${reason(fault)}`);
    return fault instanceof UsageError ? 2 : 3;
  }
}

// Not process.exitCode: the search for a host's name could go on for longer than --timeout.
process.exit(await main(process.argv.slice(2)));
