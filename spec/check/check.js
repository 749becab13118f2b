// Usage: node check.js SPEC_FOLDER EMPTY_FOLDER PYTHON
//
// Compares what the parsers made from weave.ksy read with what the vectors expect.
'use strict';

const { execFileSync } = require('child_process');
const { createHash } = require('crypto');
const fs = require('fs');
const path = require('path');
const { isDeepStrictEqual } = require('util');

const Ajv = require('ajv/dist/2020');
const compiler = require('kaitai-struct-compiler');
const yaml = require('js-yaml');

const [spec, work, python] = process.argv.slice(2);
let passed = 0;
const failures = [];

function verdict(name, problem) {
  if (problem) failures.push(`${name}: ${problem}`);
  else passed += 1;
}

function readJson(file) {
  return JSON.parse(fs.readFileSync(path.join(spec, 'vectors', file), 'utf8'));
}

const unhex = (hex) => Buffer.from(hex.replaceAll(' ', ''), 'hex');
const repeat = (bytes, times = 1) => Buffer.concat(Array(times).fill(bytes));
const digest = (bytes) => `${bytes.length} bytes, ${createHash('sha256').update(bytes).digest('hex')}`;

// An outcome of a vector in the form in which the readers print what they read.
function asRead(outcome, language) {
  const [[kind, expected]] = Object.entries(outcome);
  const fields = { kind, ...expected };
  const blob = ({ text, hex, times }) => digest(repeat(hex === undefined ? Buffer.from(text) : unhex(hex), times));
  if (kind === 'request') {
    fields.cfg_scale = unhex(expected.cfg_scale.bits).readFloatBE();
    for (const encoder of ['clip_l', 'clip_g', 't5']) {
      const { offset, length, text, times = 1 } = expected[encoder];
      let whole = text.repeat(times);
      fields[encoder] = { offset, length, raw: digest(Buffer.from(whole)) };
      // JavaScript's own decoder drops a byte order mark.
      if (language === 'JavaScript') whole = whole.replace(/^\uFEFF/, '');
      fields[encoder].text = whole;
    }
  } else if (kind === 'response') {
    fields.image_data = blob(expected.image_data);
  } else {
    fields.name ??= null;
    fields.error_msg = blob(expected.error_msg);
  }
  return fields;
}

// Whether a generated parser can see that something is wrong. It looks for no byte 0 in a prompt (step 15), and
// JavaScript's decoder replaces what is not UTF-8 (step 14).
function mustThrow(expect, language) {
  const unseen = language === 'JavaScript' ? [14, 15] : [15];
  const isWrong = (outcome) => outcome.close || (outcome.answer && !unseen.includes(outcome.answer.step));
  return expect.end === 'inside-a-frame' || expect.frames.some(isWrong);
}

function compare({ expect }, read, language) {
  if (mustThrow(expect, language)) return read.error ? null : 'was read, though it is wrong';
  if (read.error) return `was not read: ${read.error}`;
  if (expect.frames.some((outcome) => outcome.answer)) return null;
  const expected = expect.frames.map((outcome) => asRead(outcome, language));
  if (isDeepStrictEqual(read.frames, expected)) return null;
  return `expected ${JSON.stringify(expected)}\n  got ${JSON.stringify(read.frames)}`;
}

async function main() {
  const validate = new Ajv({ allErrors: true, strictRequired: false, strictTypes: false }).compile(readJson('schema.json'));
  const vectors = [];
  const files = fs.readdirSync(path.join(spec, 'vectors')).filter((file) => /^(?!schema).*\.json$/.test(file));
  for (const file of files) {
    const content = readJson(file);
    verdict(file, validate(content) ? null : JSON.stringify(validate.errors.slice(0, 3)));
    vectors.push(...content.vectors);
  }
  for (const { name, bytes } of vectors) {
    const parts = bytes.map(({ hex, times }) => repeat(unhex(hex), times));
    fs.writeFileSync(path.join(work, `${name}.bin`), Buffer.concat(parts));
  }

  const description = yaml.load(fs.readFileSync(path.join(spec, 'weave.ksy'), 'utf8'));
  for (const target of ['javascript', 'python']) {
    const made = await compiler.compile(target, description, null, false);
    for (const [file, code] of Object.entries(made)) fs.writeFileSync(path.join(work, file), code);
  }

  for (const [language, program, reader] of [['JavaScript', process.execPath, 'read.js'], ['Python', python, 'read.py']]) {
    const output = execFileSync(program, [path.join(__dirname, reader), work], { maxBuffer: 1 << 28 });
    const read = new Map(output.toString().trimEnd().split('\n').map((line) => JSON.parse(line)));
    for (const vector of vectors) verdict(`${vector.name}, ${language}`, compare(vector, read.get(vector.name), language));
  }

  failures.forEach((failure) => console.log(failure));
  console.log(`${passed} passed, ${failures.length} failed`);
  process.exitCode = failures.length > 0 || vectors.length === 0 ? 1 : 0;
}

main();
