// Usage: node read.js FOLDER
//
// Reads every .bin in FOLDER with the parser there, and prints a line of JSON for each: its name, and its frames
// or the error.
'use strict';

const { createHash } = require('crypto');
const fs = require('fs');
const path = require('path');

const KaitaiStream = require('kaitai-struct/KaitaiStream');

const folder = path.resolve(process.argv[2]);
const { Weave } = require(path.join(folder, 'Weave.js'));

// The runtime's own function gives a Number, which has only 53 bits for the 64.
KaitaiStream.prototype.readU8be = function () {
  return (BigInt(this.readU4be()) << 32n) | BigInt(this.readU4be());
};

const digest = (bytes) => `${bytes.length} bytes, ${createHash('sha256').update(bytes).digest('hex')}`;

function prompt({ offset, length, raw, text }) {
  return { offset, length, raw: digest(raw), text };
}

const payload = {
  request: (p) => ({
    request_id: String(p.requestId),
    model_id: p.modelId,
    width: p.width,
    height: p.height,
    steps: p.steps,
    cfg_scale: p.cfgScale + 0, // -0.0 means 0.0
    seed: String(p.seed),
    clip_l: prompt(p.clipL),
    clip_g: prompt(p.clipG),
    t5: prompt(p.t5),
  }),
  response: (p) => ({
    request_id: String(p.requestId),
    status: p.status,
    generation_time_ms: p.generationTimeMs,
    image_width: p.imageWidth,
    image_height: p.imageHeight,
    channels: p.channels,
    image_data_len: p.imageDataLen,
    image_data: digest(p.imageData),
    trailing: p.trailing.length,
  }),
  error: (p) => ({
    request_id: String(p.requestId),
    status: p.status,
    error_code: p.errorCode,
    name: Weave.ErrorCode[p.errorCode] ?? null,
    error_msg_len: p.errorMsgLen,
    error_msg: digest(p.errorMsg),
    trailing: p.trailing.length,
  }),
};

function frame({ header, payload: fields }) {
  const kind = Weave.MsgType[header.msgType].toLowerCase();
  return { kind, ...payload[kind](fields) };
}

function read(bytes) {
  try {
    return { frames: new Weave(new KaitaiStream(bytes)).frames.map(frame) };
  } catch (error) {
    return { error: String(error) };
  }
}

for (const file of fs.readdirSync(folder).filter((name) => name.endsWith('.bin'))) {
  const bytes = fs.readFileSync(path.join(folder, file));
  console.log(JSON.stringify([path.basename(file, '.bin'), read(bytes)]));
}
