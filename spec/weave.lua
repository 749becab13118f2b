-- Weave, version 1, in Wireshark and tshark: a dissector for what weave-v1.md describes. Tested with Wireshark 4.0.
--
--   tshark -X lua_script:spec/weave.lua -i lo -f 'tcp port 7001'
--   tshark -X lua_script:spec/weave.lua -2 -r file.pcap -O weave
--
-- or put this file into the folder that Help > About Wireshark > Folders calls "Personal Lua Plugins"
-- (~/.local/lib/wireshark/plugins). A request shows where its answer is only after a second pass: that is what -2 is
-- for, and Wireshark always makes one.
--
-- TCP. Weave has no port of its own. A connection is recognised by the magic at the beginning of a segment, or by what
-- weaved and its clients say before the first frame where a token is set (weave-daemon/TCP.md). Where that
-- is not to be had (the capture began later, or the first segment has less than four bytes) set the preference
-- weave.port (-o weave.port:7001) or use Decode As (-d tcp.port==7001,weave).
--
-- Unix sockets. No capture tool sees their bytes. forward.py stands between client and server and writes what passes
-- as a capture in which the two talk over TCP:
--
--   python3 spec/forward.py --pcap file.pcap /tmp/spy.sock "$XDG_RUNTIME_DIR/weave/weave.sock" &
--   weave generate "a cat in space" --socket /tmp/spy.sock
--
-- Fields have the names of the specification, with "weave." before them, and its units. What breaks a rule gets an
-- expert info that names the rule's id. The filter `_ws.expert` finds them all, `weave.out_of_range` those of a kind;
-- `weave.error_code` finds the errors.
--
-- A frame in whose middle the stream ends is not shown as Weave (W1-FRM-009): its packets are TCP segments. Nothing on
-- the wire says which peer is the server, so a message to the wrong side looks like any other.

local weave = Proto("weave", "Weave")

local MAGIC = "WEVE"
local HEADER_LEN = 16
local VERSION = 1
local REQUEST, RESPONSE, ERROR = 0x0001, 0x0002, 0x00FF
local MAX_REQUEST_PAYLOAD = 6204
local MAX_SKIPPED_PAYLOAD = 10485760
local MAX_RESPONSE_PAYLOAD = 16777248
local MAX_PROMPT = 2048
local MAX_ERROR_MSG = 255

local MSG_TYPES = { [REQUEST] = "request", [RESPONSE] = "response", [ERROR] = "error" }
local MODELS = { [0] = "Stable Diffusion 3.5" }
local STATUSES = { [200] = "an image", [400] = "the request is wrong", [500] = "the server failed" }
local CHANNELS = { [3] = "RGB", [4] = "RGBA" }
local ERRORS = {
    [1] = { name = "INVALID_MAGIC", status = 400, meaning = "the frame did not begin with the magic" },
    [2] = { name = "UNSUPPORTED_VERSION", status = 400, meaning = "the version is not spoken here" },
    [3] = { name = "INVALID_MODEL_ID", status = 400, meaning = "there is no such model here" },
    [4] = { name = "INVALID_PROMPT", status = 400, meaning = "a prompt's length, place or text" },
    [5] = { name = "INVALID_DIMENSIONS", status = 400, meaning = "width or height" },
    [6] = { name = "INVALID_STEPS", status = 400, meaning = "steps" },
    [7] = { name = "INVALID_CFG", status = 400, meaning = "cfg_scale" },
    [8] = { name = "OUT_OF_MEMORY", status = 500, meaning = "the image does not fit into the device's memory" },
    [9] = { name = "GPU_ERROR", status = 500, meaning = "the engine failed or died" },
    [10] = { name = "TIMEOUT", status = 500, meaning = "a deadline passed" },
    [20] = { name = "MALFORMED", status = 400, meaning = "the payload is too short for its fields" },
    [21] = { name = "TOO_LARGE", status = 400, meaning = "the payload is too long to be followed" },
    [22] = { name = "UNSUPPORTED_TYPE", status = 400, meaning = "a msg_type that a server does not take" },
    [23] = { name = "BUSY", status = 500, meaning = "the queue or the table of connections is full" },
    [24] = { name = "SHUTTING_DOWN", status = 500, meaning = "the server is ending" },
    [99] = { name = "INTERNAL", status = 500, meaning = "anything else on the server's side" },
}
local ERROR_NAMES = { [0] = "NONE" }
for code, entry in pairs(ERRORS) do
    ERROR_NAMES[code] = entry.name
end

local PIXELS = { " pixel", " pixels" }
local BYTES = { " byte", " bytes" }

local function u32(name, unit, description)
    local base_or_unit = unit and base.UNIT_STRING or base.DEC
    return ProtoField.uint32("weave." .. name, name, base_or_unit, unit, nil, description)
end

local function u32_enum(name, values, description)
    return ProtoField.uint32("weave." .. name, name, base.DEC, values, nil, description)
end

local fields = {
    magic = ProtoField.string("weave.magic", "magic", base.ASCII),
    version = ProtoField.uint16("weave.version", "version", base.DEC),
    msg_type = ProtoField.uint16("weave.msg_type", "msg_type", base.HEX, MSG_TYPES),
    payload_len = u32("payload_len", BYTES, "Bytes after the header"),
    reserved = ProtoField.uint32("weave.reserved", "reserved", base.HEX),
    -- These three have the names that the test vectors give to what is not a field of the specification.
    payload = ProtoField.bytes("weave.payload", "payload", base.NONE, "What is of unknown layout in a payload"),
    trailing = ProtoField.bytes("weave.trailing", "trailing", base.NONE, "Bytes after the fields of this version"),
    junk = ProtoField.bytes("weave.junk", "junk", base.NONE, "Bytes that belong to no frame"),

    request_id = ProtoField.uint64("weave.request_id", "request_id", base.DEC),
    model_id = u32_enum("model_id", MODELS),
    width = u32("width", PIXELS),
    height = u32("height", PIXELS),
    steps = u32("steps"),
    cfg_scale = ProtoField.float("weave.cfg_scale", "cfg_scale"),
    seed = ProtoField.uint64("weave.seed", "seed", base.DEC),
    clip_l_offset = u32("clip_l_offset", BYTES, "From the first byte of prompt_data"),
    clip_l_length = u32("clip_l_length", BYTES),
    clip_g_offset = u32("clip_g_offset", BYTES, "From the first byte of prompt_data"),
    clip_g_length = u32("clip_g_length", BYTES),
    t5_offset = u32("t5_offset", BYTES, "From the first byte of prompt_data"),
    t5_length = u32("t5_length", BYTES),
    prompt_data = ProtoField.bytes("weave.prompt_data", "prompt_data"),
    clip_l = ProtoField.string("weave.clip_l", "clip_l", base.UNICODE, "The prompt for CLIP-L"),
    clip_g = ProtoField.string("weave.clip_g", "clip_g", base.UNICODE, "The prompt for CLIP-G"),
    t5 = ProtoField.string("weave.t5", "t5", base.UNICODE, "The prompt for T5"),

    status = u32_enum("status", STATUSES),
    generation_time_ms = u32("generation_time_ms", { " ms" }),
    image_width = u32("image_width", PIXELS),
    image_height = u32("image_height", PIXELS),
    channels = u32_enum("channels", CHANNELS),
    image_data_len = u32("image_data_len", BYTES),
    image_data = ProtoField.bytes("weave.image_data", "image_data"),

    error_code = u32_enum("error_code", ERROR_NAMES),
    error_msg_len = ProtoField.uint16("weave.error_msg_len", "error_msg_len", base.UNIT_STRING, BYTES),
    error_msg = ProtoField.string("weave.error_msg", "error_msg", base.UNICODE),

    answer_in = ProtoField.framenum("weave.answer_in", "answer in", base.NONE, frametype.RESPONSE),
    request_in = ProtoField.framenum("weave.request_in", "request in", base.NONE, frametype.REQUEST),
    time = ProtoField.relative_time("weave.time", "time since the request"),
}
weave.fields = fields

local function expert_info(name, text, group, severity)
    return ProtoExpert.new("weave." .. name, text, expert.group[group], expert.severity[severity])
end

local experts = {
    bad_magic = expert_info("bad_magic", "no magic where a frame must begin", "MALFORMED", "ERROR"),
    bad_length = expert_info("bad_length", "a length that contradicts the frame", "MALFORMED", "ERROR"),
    out_of_range = expert_info("out_of_range", "a value out of its range", "PROTOCOL", "ERROR"),
    bad_prompt = expert_info("bad_prompt", "a prompt's length, place or text", "PROTOCOL", "ERROR"),
    bad_answer = expert_info("bad_answer", "an answer that does not fit its request", "PROTOCOL", "WARN"),
    unknown = expert_info("unknown", "a version or type that version 1 does not have", "PROTOCOL", "WARN"),
    refused = expert_info("refused", "the server answered with an error", "RESPONSE_CODE", "NOTE"),
    ignored = expert_info("ignored", "bytes that a receiver ignores", "PROTOCOL", "NOTE"),
    cut = expert_info("cut", "the capture does not have all of this frame", "UNDECODED", "NOTE"),
}
weave.experts = experts

weave.prefs.port = Pref.uint("TCP port", 0, "The port of a Weave server. 0: recognise Weave by its magic alone.")

-- Requests and answers -----------------------------------------------------------------------------------------------

-- What was found out on the first pass, by packet and by the frame's place among those that end in the packet.
local links = {}
-- The requests that have no answer yet: by connection, client and request_id a queue, since ids may repeat
-- (W1-CON-004). A queue has its items from `first` to `last`.
local waiting = {}

-- Called before a file is read.
function weave.init()
    links, waiting = {}, {}
end

local tcp_stream = Field.new("tcp.stream")

-- What a request and its answer have in common.
local function connection_key(client_address, client_port, request_id)
    local stream = tcp_stream()
    local place = stream and stream.value or "-"
    return string.format("%s %s %s %s", place, tostring(client_address), client_port, request_id)
end

-- This frame's entry in `links`, made on the first pass.
local function link_of(pinfo, place)
    local packet = links[pinfo.number]
    if not packet then
        packet = {}
        links[pinfo.number] = packet
    end
    if not packet[place] then
        packet[place] = {}
    end
    return packet[place]
end

local function add_generated(tree, field, value)
    tree:add(field, value):set_generated()
end

local function track_request(pinfo, tree, place, request)
    local link = link_of(pinfo, place)
    if not pinfo.visited then
        local key = connection_key(pinfo.src, pinfo.src_port, request.id)
        request.link, request.number, request.time = link, pinfo.number, pinfo.rel_ts
        local queue = waiting[key] or { first = 1, last = 0 }
        waiting[key] = queue
        queue.last = queue.last + 1
        queue[queue.last] = request
    end
    if link.answer_in then
        add_generated(tree, fields.answer_in, link.answer_in)
    end
end

-- `size`: {width, height} of an image; nil for an error.
local function track_answer(pinfo, tree, place, id, size)
    local link = link_of(pinfo, place)
    if not pinfo.visited then
        local queue = waiting[connection_key(pinfo.dst, pinfo.dst_port, id)]
        link.request = queue and queue[queue.first]
        if link.request then
            queue[queue.first] = nil
            queue.first = queue.first + 1
            link.request.link.answer_in = pinfo.number
        end
    end
    local request = link.request
    if not request then
        -- An error may be for the whole connection (W1-ERR-001, W1-CON-008).
        if size or id ~= "0" then
            tree:add_proto_expert_info(experts.bad_answer, "no request " .. id .. " waits for an answer")
        end
        return
    end
    add_generated(tree, fields.request_in, request.number)
    local nanoseconds = math.max(0, math.floor((pinfo.rel_ts - request.time) * 1e9 + 0.5))
    add_generated(tree, fields.time, NSTime.new(math.floor(nanoseconds / 1e9), nanoseconds % 1e9))
    if size and request.width and (size[1] ~= request.width or size[2] ~= request.height) then
        tree:add_proto_expert_info(experts.bad_answer, string.format("the request was for %s×%s pixels (W1-RSP-002)",
            request.width, request.height))
    end
end

-- Fields -------------------------------------------------------------------------------------------------------------

-- Reads the fields of a payload one after the other, and never beyond what there is.
local Reader = {}
Reader.__index = Reader

-- `tvb` has a frame as far as it was captured; `payload_len` is what its header says, `length_item` where it is shown.
local function new_reader(tvb, tree, payload_len, length_item)
    local stop = HEADER_LEN + payload_len
    return setmetatable({
        tvb = tvb, tree = tree, at = HEADER_LEN, stop = stop, size = math.min(stop, tvb:len()),
        payload_len = payload_len, length_item = length_item,
    }, Reader)
end

-- How much of the payload is left, by its header's word.
function Reader:left()
    return self.stop - self.at
end

-- The next `size` bytes, shown as `field`. If there are fewer: nothing, now and from now on.
function Reader:take(field, size, encoding)
    if self.at + size > self.size then
        self.at, self.short = self.size, true
        return nil
    end
    local range = self.tvb:range(self.at, size)
    self.at = self.at + size
    return range, self.tree:add_packet_field(field, range, encoding or ENC_BIG_ENDIAN)
end

-- As much as was captured of the next `size` bytes; nothing if that is nothing.
function Reader:take_captured(field, size, encoding)
    local here = math.min(size, self.size - self.at)
    if here > 0 then
        return self:take(field, here, encoding)
    end
end

function Reader:u32(field)
    local range, item = self:take(field, 4)
    return range and range:uint(), item
end

-- Numbers of 64 bits are text here: Lua's own have no room for them.
function Reader:u64(field)
    local range, item = self:take(field, 8)
    return range and tostring(range:uint64()), item
end

-- Says so if the payload, and not just the capture, ended before its fields did.
function Reader:note_short(needed, id)
    if self.short and self.stop == self.size then
        self.length_item:add_proto_expert_info(experts.bad_length, string.format(
            "payload_len %s: too short for the fields, which take %s bytes (%s)", self.payload_len, needed, id))
    end
end

-- Says so if the next `size` bytes, which `name` announced, are more than the payload has.
function Reader:check_announced(name, size, id)
    if size > self:left() then
        self.length_item:add_proto_expert_info(experts.bad_length, string.format(
            "payload_len %s: %s is %s, and only %s bytes follow (%s)", self.payload_len, name, size, self:left(), id))
    end
end

-- Shows what follows the fields of this version.
function Reader:trailing(id)
    local range, item = self:take_captured(fields.trailing, self:left())
    if range then
        item:add_proto_expert_info(experts.ignored, "after the last field, and so ignored (" .. id .. ")")
    end
end

local function out_of_range(item, name, value, allowed, id)
    item:add_proto_expert_info(experts.out_of_range, string.format("%s %s: must be %s (%s)", name, value, allowed, id))
end

local function side_ok(side)
    return side >= 64 and side <= 2048 and side % 64 == 0
end

local function check_side(item, name, side, id)
    if side and not side_ok(side) then
        out_of_range(item, name, side, "64 to 2048, and a multiple of 64", id)
    end
end

-- The place of the first byte, from 0, that is not UTF-8; nil if all are.
local function not_utf8(text)
    local at, length = 1, #text
    while at <= length do
        local first = text:byte(at)
        -- How many bytes follow, and what the first of them may be (Unicode, table 3-7).
        local more, low, high = 0, 0x80, 0xBF
        if first >= 0x80 then
            if first >= 0xC2 and first <= 0xDF then
                more = 1
            elseif first >= 0xE0 and first <= 0xEF then
                more = 2
                low = first == 0xE0 and 0xA0 or low
                high = first == 0xED and 0x9F or high
            elseif first >= 0xF0 and first <= 0xF4 then
                more = 3
                low = first == 0xF0 and 0x90 or low
                high = first == 0xF4 and 0x8F or high
            else
                return at - 1
            end
        end
        for next_at = at + 1, at + more do
            local byte = text:byte(next_at)
            if not byte or byte < low or byte > high then
                return at - 1
            end
            low, high = 0x80, 0xBF
        end
        at = at + more + 1
    end
    return nil
end

-- Text for the Info column: in UTF-8, without control characters.
local function printable(range)
    local text = range:raw()
    if not_utf8(text) then
        text = text:gsub("[\128-\255]", "?")
    end
    return (text:gsub("[\0-\31\127]", "."))
end

-- Messages -----------------------------------------------------------------------------------------------------------

-- The prompt of one encoder. `data` is prompt_data as far as it was captured, `data_len` its whole length.
local function show_prompt(tree, data, data_len, prompt)
    local name, offset, length = prompt.name, prompt.offset, prompt.length
    local stop = offset + length
    local length_ok = length >= 1 and length <= MAX_PROMPT
    if not length_ok then
        prompt.length_item:add_proto_expert_info(experts.bad_prompt, string.format(
            "%s_length %s: must be 1 to %s (W1-REQ-001)", name, length, MAX_PROMPT))
    end
    if stop > data_len then
        prompt.offset_item:add_proto_expert_info(experts.bad_prompt, string.format(
            "%s ends at byte %s, prompt_data at byte %s (W1-REQ-002)", name, stop, data_len))
    end
    if length == 0 or not data or stop > data:len() then
        return
    end
    local range = data:range(offset, length)
    local item = tree:add_packet_field(fields[name], range, ENC_UTF_8)
    item:append_text(string.format(" (bytes %s to %s of prompt_data)", offset, stop - 1))
    if not length_ok then
        return  -- no server looks at the text of such a prompt
    end
    local text = range:raw()
    local bad = not_utf8(text)
    if bad then
        item:add_proto_expert_info(experts.bad_prompt, string.format(
            "%s is not UTF-8 from its byte %s on (W1-REQ-003)", name, bad))
    end
    local zero = text:find("\0", 1, true)
    if zero then
        item:add_proto_expert_info(experts.bad_prompt, string.format(
            "%s has a 0 as its byte %s (W1-REQ-003)", name, zero - 1))
    end
end

-- The part of a request that belongs to model 0.
local function show_sd35(reader)
    local tree = reader.tree
    local width, width_item = reader:u32(fields.width)
    check_side(width_item, "width", width, "W1-REQ-001")
    local height, height_item = reader:u32(fields.height)
    check_side(height_item, "height", height, "W1-REQ-001")

    local steps, steps_item = reader:u32(fields.steps)
    if steps and (steps < 1 or steps > 100) then
        out_of_range(steps_item, "steps", steps, "1 to 100", "W1-REQ-001")
    end
    local cfg, cfg_item = reader:take(fields.cfg_scale, 4)
    -- Written so that NaN, which is neither less nor more, is out of range.
    if cfg and not (cfg:float() >= 0 and cfg:float() <= 20) then
        out_of_range(cfg_item, "cfg_scale", cfg:float(), "0.0 to 20.0", "W1-REQ-001")
    end
    local seed, seed_item = reader:u64(fields.seed)
    if seed == "0" then
        seed_item:append_text(" (the server draws one)")
    end

    local prompts = {}
    for _, name in ipairs({ "clip_l", "clip_g", "t5" }) do
        local prompt = { name = name }
        prompt.offset, prompt.offset_item = reader:u32(fields[name .. "_offset"])
        prompt.length, prompt.length_item = reader:u32(fields[name .. "_length"])
        table.insert(prompts, prompt)
    end
    if not reader.short then
        local data_len = reader:left()
        local data = reader:take_captured(fields.prompt_data, data_len)
        for _, prompt in ipairs(prompts) do
            show_prompt(tree, data, data_len, prompt)
        end
    end
    return width, height
end

-- Each of these four shows a payload and returns a line about it for the Info column.

local function show_request(reader, pinfo, place)
    local id = reader:u64(fields.request_id)
    local model, model_item = reader:u32(fields.model_id)
    local width, height
    if model == 0 then
        width, height = show_sd35(reader)
        reader:note_short(60, "W1-VAL-001")
    else
        if model then
            out_of_range(model_item, "model_id", model, "0", "W1-REQ-001")
        end
        reader:take_captured(fields.payload, reader:left())
        reader:note_short(12, "W1-VAL-001")
    end
    if id then
        track_request(pinfo, reader.tree, place, { id = id, width = width, height = height })
    end
    return string.format("Request %s%s", id or "?", height and string.format(": %s×%s", width, height) or "")
end

local function show_response(reader, pinfo, place)
    local id = reader:u64(fields.request_id)
    local status, status_item = reader:u32(fields.status)
    if status and status ~= 200 then
        out_of_range(status_item, "status", status, "200", "W1-RSP-004, W1-RSP-005")
    end
    local milliseconds = reader:u32(fields.generation_time_ms)
    local width, width_item = reader:u32(fields.image_width)
    check_side(width_item, "image_width", width, "W1-RSP-005")
    local height, height_item = reader:u32(fields.image_height)
    check_side(height_item, "image_height", height, "W1-RSP-005")
    local channels, channels_item = reader:u32(fields.channels)
    if channels and not CHANNELS[channels] then
        out_of_range(channels_item, "channels", channels, "3 or 4", "W1-RSP-005")
    end
    local length, length_item = reader:u32(fields.image_data_len)
    if length then
        -- Only with numbers in range, so that their product is exact.
        if side_ok(width) and side_ok(height) and CHANNELS[channels] and length ~= width * height * channels then
            length_item:add_proto_expert_info(experts.bad_length, string.format(
                "image_data_len %s: %s · %s · %s is %s (W1-RSP-004, W1-RSP-005)", length, width, height, channels,
                width * height * channels))
        end
        reader:check_announced("image_data_len", length, "W1-RSP-006")
        local pixels, pixels_item = reader:take_captured(fields.image_data, length)
        if pixels then
            pixels_item:set_text(string.format("image_data: %s bytes", pixels:len()))
        end
        reader:trailing("W1-RSP-007")
    end
    reader:note_short(32, "W1-RSP-006")
    if id then
        track_answer(pinfo, reader.tree, place, id, height and { width, height })
    end
    local size = length and string.format(": %s×%s %s, %s ms", width, height, CHANNELS[channels] or "?", milliseconds)
    return string.format("Response %s%s", id or "?", size or "")
end

local function show_error(reader, pinfo, place)
    local id = reader:u64(fields.request_id)
    local status, status_item = reader:u32(fields.status)
    local code, code_item = reader:u32(fields.error_code)
    local known = code and ERRORS[code]
    if status and status ~= 400 and status ~= 500 then
        out_of_range(status_item, "status", status, "400 or 500", "W1-ERR-007")
    elseif known and status ~= known.status then
        out_of_range(status_item, "status", status, known.status .. " with " .. known.name, "W1-ERR-002")
    end
    if known then
        code_item:append_text(": " .. known.meaning)
        code_item:add_proto_expert_info(experts.refused, known.name .. ": " .. known.meaning)
    elseif code == 0 then
        code_item:add_proto_expert_info(experts.out_of_range, "error_code 0 (NONE) is never sent")
    elseif code then
        code_item:add_proto_expert_info(experts.refused, string.format(
            "error_code %s is not known here: go by the status (W1-ERR-006)", code))
    end

    local text = ""
    local length_range, length_item = reader:take(fields.error_msg_len, 2)
    if length_range then
        local length = length_range:uint()
        reader:check_announced("error_msg_len", length, "W1-ERR-008")
        if length > MAX_ERROR_MSG then
            length_item:add_proto_expert_info(experts.bad_length, string.format(
                "error_msg_len %s: at most %s (W1-ERR-003)", length, MAX_ERROR_MSG))
        end
        local message, message_item = reader:take_captured(fields.error_msg, length, ENC_UTF_8)
        if message then
            -- A message that is cut can end within a character.
            if message:len() == length and not_utf8(message:raw()) then
                message_item:add_proto_expert_info(experts.out_of_range, "error_msg is not UTF-8 (W1-ERR-010)")
            end
            text = ": " .. printable(message)
        end
        reader:trailing("W1-ERR-009")
    end
    reader:note_short(18, "W1-ERR-008")
    if id then
        track_answer(pinfo, reader.tree, place, id)
    end
    return string.format("Error %s: %s%s", id or "?", known and known.name or code or "?", text)
end

-- What is of another version or type has at least a request_id, which the answer will repeat (W1-ERR-001).
local function show_other(reader, pinfo, place, version, msg_type)
    local id = reader:u64(fields.request_id)
    reader:take_captured(fields.payload, reader:left())
    if id then
        track_request(pinfo, reader.tree, place, { id = id })
    end
    return string.format("Version %s, msg_type 0x%04x, %s", version, msg_type, id or "?")
end

-- Frames -------------------------------------------------------------------------------------------------------------

-- The rule about the version of each type of message.
local VERSION_RULES = { [REQUEST] = "W1-VER-003", [RESPONSE] = "W1-FRM-010", [ERROR] = "W1-VER-006" }

-- The largest payload that a receiver of such a message follows, and the rule that says so.
local function max_payload(msg_type)
    if msg_type == RESPONSE or msg_type == ERROR then
        return MAX_RESPONSE_PAYLOAD, "W1-FRM-007"
    end
    return MAX_SKIPPED_PAYLOAD, "W1-FRM-002"
end

-- The place of the next frame among those that end in this packet, from 1. The count lives as long as one dissection of
-- the packet, so a frame has the same place each time.
local function next_place(pinfo)
    local place = (tonumber(pinfo.private.weave_frames) or 0) + 1
    pinfo.private.weave_frames = tostring(place)
    return place
end

local function add_info(pinfo, place, text)
    if place == 1 then
        pinfo.cols.info:set(text)
    else
        pinfo.cols.info:append("; " .. text)
    end
end

-- `tvb` has a header, and the payload as far as it was captured.
local function show_frame(tvb, pinfo, root)
    local place = next_place(pinfo)
    local tree = root:add(weave, tvb:range())
    tree:add(fields.magic, tvb:range(0, 4))

    local version, msg_type = tvb:range(4, 2):uint(), tvb:range(6, 2):uint()
    local version_item = tree:add(fields.version, tvb:range(4, 2))
    if version ~= VERSION then
        version_item:add_proto_expert_info(experts.unknown, string.format(
            "version %s is not known here (%s)", version, VERSION_RULES[msg_type] or VERSION_RULES[REQUEST]))
    end
    local type_item = tree:add(fields.msg_type, tvb:range(6, 2))
    if not MSG_TYPES[msg_type] then
        type_item:add_proto_expert_info(experts.unknown, string.format(
            "msg_type 0x%04x is not known here (W1-VAL-001, W1-FRM-010)", msg_type))
    end

    local payload_len = tvb:range(8, 4):uint()
    local length_item = tree:add(fields.payload_len, tvb:range(8, 4))
    local most, rule = max_payload(msg_type)
    if payload_len > most then
        length_item:add_proto_expert_info(experts.bad_length, string.format(
            "payload_len %s: at most %s, so the stream can't be followed any further (%s)", payload_len, most, rule))
    elseif msg_type == REQUEST and version == VERSION and payload_len > MAX_REQUEST_PAYLOAD then
        length_item:add_proto_expert_info(experts.bad_length, string.format(
            "payload_len %s: at most %s in a request (W1-FRM-001)", payload_len, MAX_REQUEST_PAYLOAD))
    end
    if payload_len <= most and HEADER_LEN + payload_len > tvb:len() then
        tree:add_proto_expert_info(experts.cut)
    end
    local reserved_item = tree:add(fields.reserved, tvb:range(12, 4))
    if tvb:range(12, 4):uint() ~= 0 then
        reserved_item:add_proto_expert_info(experts.ignored,
            "reserved is not 0 (W1-HDR-004), which a receiver ignores (W1-HDR-005)")
    end

    local reader = new_reader(tvb, tree, payload_len, length_item)
    local text
    -- Nobody reads a payload that is too long, nor is its request_id repeated (W1-ERR-001). Of other versions, only
    -- answers can be read: they grow at their end (W1-VER-005).
    if payload_len > most then
        reader:take_captured(fields.payload, payload_len)
        text = string.format("Too long: %s bytes", payload_len)
    elseif msg_type == RESPONSE then
        text = show_response(reader, pinfo, place)
    elseif msg_type == ERROR then
        text = show_error(reader, pinfo, place)
    elseif msg_type == REQUEST and version == VERSION then
        text = show_request(reader, pinfo, place)
    else
        text = show_other(reader, pinfo, place, version, msg_type)
    end
    tree:append_text(", " .. text)
    add_info(pinfo, place, text)
end

-- Bytes where a frame should have begun.
local function show_junk(range, pinfo, root)
    local tree = root:add(weave, range)
    tree:append_text(string.format(", %s bytes that belong to no frame", range:len()))
    tree:add(fields.junk, range):add_proto_expert_info(experts.bad_magic,
        "no frame begins here: the magic is missing (W1-FRM-004, W1-FRM-006), or a beginning that was not captured")
    add_info(pinfo, next_place(pinfo), "no magic")
end

-- Streams ------------------------------------------------------------------------------------------------------------

-- Asks for more bytes of the stream, from `at` on; false if there will not be any: the capture has only the beginnings
-- of packets, or reassembly is switched off.
local function ask_for_more(tvb, pinfo, at, count)
    if pinfo.can_desegment == 0 or tvb:len() < tvb:reported_len() then
        return false
    end
    pinfo.desegment_offset, pinfo.desegment_len = at, count
    return true
end

-- What weaved and its clients say over TCP before the first frame, where a token is set (weave-daemon/TCP.md): how long
-- such a line is, and what is in it.
local HEX = ("%x"):rep(64)
local AUTH_LINES = {
    { pattern = "^weave%-auth 1 " .. HEX .. "\n", size = 78, text = "weave-auth 1: the client's nonce" },
    { pattern = "^weave%-auth 1 " .. HEX .. " " .. HEX .. "\n", size = 143, text = "weave-auth 1: the server's nonce and proof" },
    { pattern = "^" .. HEX .. "\n", size = 65, text = "weave-auth 1: the client's proof" },
}

local function auth_line(bytes)
    for _, line in ipairs(AUTH_LINES) do
        if bytes:find(line.pattern) then
            return line
        end
    end
end

local function show_stream(tvb, pinfo, root)
    pinfo.cols.protocol:set("Weave")
    local at, size = 0, tvb:len()
    while at < size do
        local left = size - at
        local beginning = tvb:raw(at, math.min(left, #MAGIC))
        local stop
        local line = auth_line(tvb:raw(at, math.min(left, 143)))
        if line then
            stop = at + line.size
            root:add(weave, tvb:range(at, line.size)):append_text(", " .. line.text)
            add_info(pinfo, next_place(pinfo), line.text)
        elseif beginning ~= MAGIC:sub(1, #beginning) then
            -- A peer gives up here (W1-FRM-004, W1-FRM-006). Whoever reads a capture may want to see what follows.
            local found = tvb:raw(at, left):find(MAGIC, 2, true)
            stop = found and at + found - 1 or size
            show_junk(tvb:range(at, stop - at), pinfo, root)
        elseif left < HEADER_LEN then
            if ask_for_more(tvb, pinfo, at, DESEGMENT_ONE_MORE_SEGMENT) then
                return
            end
            stop = size
            root:add(weave, tvb:range(at, left)):add_proto_expert_info(experts.cut)
            add_info(pinfo, next_place(pinfo), "a part of a header")
        else
            local payload_len = tvb:range(at + 8, 4):uint()
            local needed = HEADER_LEN + payload_len
            local most = max_payload(tvb:range(at + 6, 2):uint())
            if payload_len <= most and needed > left and ask_for_more(tvb, pinfo, at, needed - left) then
                return
            end
            stop = at + math.min(needed, left)
            show_frame(tvb:range(at, stop - at):tvb(), pinfo, root)
        end
        at = stop
    end
end

weave.dissector = show_stream

-- Registration -------------------------------------------------------------------------------------------------------

local tcp_ports = DissectorTable.get("tcp.port")
tcp_ports:add_for_decode_as(weave)

local registered_port = 0
function weave.prefs_changed()
    if registered_port ~= 0 then
        tcp_ports:remove(registered_port, weave)
    end
    registered_port = weave.prefs.port
    if registered_port ~= 0 then
        tcp_ports:add(registered_port, weave)
    end
end

weave:register_heuristic("tcp", function(tvb, pinfo, root)
    local is_frame = tvb:len() >= #MAGIC and tvb:raw(0, #MAGIC) == MAGIC
    -- A proof alone could be anybody's line of digits.
    if not is_frame and not (tvb:len() >= 78 and tvb:raw(0, 6) == "weave-" and auth_line(tvb:raw(0, math.min(tvb:len(), 143)))) then
        return false
    end
    pinfo.conversation = weave  -- for the segments that follow, which begin anywhere
    -- Not weave.dissector, which would count as a layer of its own: those can't ask TCP for more.
    show_stream(tvb, pinfo, root)
    return true
end)
