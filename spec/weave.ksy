meta:
  id: weave
  title: Weave, version 1
  ks-version: '0.11'
  endian: be
  encoding: UTF-8
doc: |
  A binary protocol for local image generation. This file describes one direction of a connection: frames that
  follow each other without anything in between. `weave-v1.md` beside it is the protocol; ids such as W1-HDR-001
  are requirements there.

  A generated parser throws where a frame breaks a rule that can be written here. It can't do these:

  - It doesn't know who reads: that a server takes only requests, and a client only responses and errors, is left
    to the program (W1-VAL-001 step 4).
  - Its order of checks is the order of the fields, not that of W1-VAL-001, and prompts are checked only when they
    are asked for: the program has to ask for `text` of all three.
  - Not every language's runtime refuses text that is not UTF-8 (step 14): JavaScript's replaces it, and drops a
    byte order mark at its beginning. `raw` has the bytes. A byte 0 in a prompt (step 15) is not looked for.
  - It keeps the sign of a cfg_scale of -0.0 (W1-REQ-007).
  - JavaScript's runtime reads a u64 as a Number, which is exact only up to 2^53. `check/read.js` shows how to get a
    BigInt instead.
doc-ref: weave-v1.md
seq:
  - id: frames
    type: frame
    repeat: eos
types:
  frame:
    doc: A header and its payload.
    doc-ref: weave-v1.md section 3
    seq:
      - id: header
        type: header
      - id: payload
        size: header.payload_len
        type:
          switch-on: header.msg_type
          cases:
            'msg_type::request': request
            'msg_type::response': response
            'msg_type::error': error
  header:
    doc: The 16 bytes that every frame begins with.
    doc-ref: weave-v1.md section 3.1
    seq:
      - id: magic
        contents: WEVE
        doc: The same in every version.
        doc-ref: W1-HDR-001, W1-FRM-004, W1-FRM-006
      - id: version
        type: u2
        doc: 1, but for errors of a server that speaks another one.
        doc-ref: W1-HDR-002, W1-VER-003, W1-VER-006
      - id: msg_type
        type: u2
        enum: msg_type
        valid:
          expr: _ == msg_type::error or (version == 1 and (_ == msg_type::request or _ == msg_type::response))
        doc-ref: W1-FRM-010
      - id: payload_len
        type: u4
        valid:
          max: 16777248
        doc: Bytes that follow the header. A server refuses more than 10485760.
        doc-ref: W1-HDR-003, W1-FRM-002, W1-FRM-007
      - id: reserved
        type: u4
        doc: Senders write 0, receivers ignore it.
        doc-ref: W1-HDR-004, W1-HDR-005
  request:
    doc: From client to server.
    doc-ref: weave-v1.md section 4
    seq:
      - id: request_id
        type: u8
        doc: Chosen by the client; comes back with the answer.
        doc-ref: W1-RSP-001, W1-ERR-001
      - id: model_id
        type: u4
        enum: model
        valid:
          in-enum: true
      - id: width
        type: u4
        valid:
          expr: _ >= 64 and _ <= 2048 and _ % 64 == 0
        doc: In pixels.
        doc-ref: W1-REQ-001
      - id: height
        type: u4
        valid:
          expr: _ >= 64 and _ <= 2048 and _ % 64 == 0
        doc: In pixels.
        doc-ref: W1-REQ-001
      - id: steps
        type: u4
        valid:
          min: 1
          max: 100
        doc-ref: W1-REQ-001
      - id: cfg_scale
        type: f4
        valid:
          expr: _ >= 0.0 and _ <= 20.0
        doc: NaN is not in the range.
        doc-ref: W1-REQ-001, W1-REQ-007
      - id: seed
        type: u8
        doc: 0 leaves the choice to the server.
        doc-ref: W1-REQ-009, W1-REQ-010
      - id: clip_l
        type: prompt
      - id: clip_g
        type: prompt
      - id: t5
        type: prompt
      - id: prompt_data
        size-eos: true
        type: prompt_data
        valid:
          expr: _.size <= 6144
  prompt_data:
    doc: What the three ranges point into. They may overlap, and what none of them covers means nothing.
    doc-ref: W1-REQ-005, W1-REQ-006
    instances:
      size:
        value: _io.size
  prompt:
    doc: The place of one text in prompt_data. Its three fields in the payload are called clip_l_offset and so on.
    seq:
      - id: offset
        type: u4
        doc: From the first byte of prompt_data.
        doc-ref: W1-REQ-002
      - id: length
        type: u4
        valid:
          min: 1
          max: 2048
        doc: In bytes.
        doc-ref: W1-REQ-001
    instances:
      raw:
        io: _parent.prompt_data._io
        pos: offset
        size: length
        doc: The bytes of the text.
        doc-ref: W1-REQ-002, W1-VAL-002
      text:
        value: raw.to_s("UTF-8")
        doc-ref: W1-REQ-003
  response:
    doc: From server to client, the image that a request asked for.
    doc-ref: weave-v1.md section 5
    seq:
      - id: request_id
        type: u8
        doc-ref: W1-RSP-001
      - id: status
        type: u4
        valid: 200
        doc-ref: W1-RSP-004
      - id: generation_time_ms
        type: u4
        doc-ref: W1-RSP-003
      - id: image_width
        type: u4
        valid:
          expr: _ >= 64 and _ <= 2048 and _ % 64 == 0
        doc: In pixels.
        doc-ref: W1-RSP-005
      - id: image_height
        type: u4
        valid:
          expr: _ >= 64 and _ <= 2048 and _ % 64 == 0
        doc: In pixels.
        doc-ref: W1-RSP-005
      - id: channels
        type: u4
        enum: channels
        valid:
          in-enum: true
        doc-ref: W1-RSP-005
      - id: image_data_len
        type: u4
        valid:
          expr: _ == image_width * image_height * channels.to_i
        doc: The sides were checked above, so that the product fits into 32 bits.
        doc-ref: W1-RSP-005
      - id: image_data
        size: image_data_len
        doc: Rows from the top, pixels from the left, one byte a channel, no padding.
        doc-ref: W1-RSP-006
      - id: trailing
        size-eos: true
        doc: Fields of later versions, to be ignored.
        doc-ref: W1-RSP-007
  error:
    doc: From server to client, why there is no image.
    doc-ref: weave-v1.md section 6
    seq:
      - id: request_id
        type: u8
        doc: That of the request, or 0.
        doc-ref: W1-ERR-001
      - id: status
        type: u4
        enum: status
        valid:
          in-enum: true
        doc-ref: W1-ERR-002, W1-ERR-007
      - id: error_code
        type: u4
        enum: error_code
        doc: A code that is not in the list is legal. The status says whose fault it is.
        doc-ref: W1-ERR-006
      - id: error_msg_len
        type: u2
        doc-ref: W1-ERR-003, W1-ERR-008
      - id: error_msg
        size: error_msg_len
        doc: Meant to be UTF-8, but not to be trusted.
        doc-ref: W1-ERR-010
      - id: trailing
        size-eos: true
        doc: Fields of later versions, to be ignored.
        doc-ref: W1-ERR-009
enums:
  msg_type:
    0x0001: request
    0x0002: response
    0x00ff: error
  model:
    0:
      id: stable_diffusion_35
      doc: Stable Diffusion 3.5.
  channels:
    3: rgb
    4: rgba
  status:
    400:
      id: client_error
      doc: The same request will fail again.
    500:
      id: server_error
      doc: The same request may succeed later.
  error_code:
    0: none
    1: invalid_magic
    2: unsupported_version
    3: invalid_model_id
    4: invalid_prompt
    5: invalid_dimensions
    6: invalid_steps
    7: invalid_cfg
    8: out_of_memory
    9: gpu_error
    10: timeout
    20: malformed
    21: too_large
    22: unsupported_type
    23: busy
    24: shutting_down
    99: internal
