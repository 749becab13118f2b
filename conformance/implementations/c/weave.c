/* See weave.h. The order of this file: bytes, faults, UTF-8, checks, the two readers, the writers, showing. */
#include "weave.h"

#include <float.h>

#if FLT_RADIX != 2 || FLT_MANT_DIG != 24 || FLT_MAX_EXP != 128
#error "weave_request.cfg_scale needs a float that is an IEEE 754 binary32 (W1-TRN-005)"
#endif

enum {
    MAGIC_LEN = 4,
    VERSION = 1,
    TYPE_REQUEST = 0x0001,
    TYPE_RESPONSE = 0x0002,
    TYPE_ERROR = 0x00FF,
    /* The fixed fields of each payload. */
    REQUEST_ID_LEN = 8,
    ANY_MODEL_LEN = 12, /* those of a request that are the same for every model */
    REQUEST_LEN = 60,
    RESPONSE_LEN = 32,
    ERROR_LEN = 18,
    STATUS_OK = 200
};

/* ---- Bytes: big-endian, without padding (W1-TRN-005, W1-TRN-006) ---- */

static uint32_t get_u16(const uint8_t *at)
{
    return (uint32_t)at[0] << 8 | at[1];
}

static uint32_t get_u32(const uint8_t *at)
{
    return get_u16(at) << 16 | get_u16(at + 2);
}

static uint64_t get_u64(const uint8_t *at)
{
    return (uint64_t)get_u32(at) << 32 | get_u32(at + 4);
}

static uint8_t *put_u16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
    return at + 2;
}

static uint8_t *put_u32(uint8_t *at, uint32_t value)
{
    return put_u16(put_u16(at, value >> 16), value & 0xFFFF);
}

static uint8_t *put_u64(uint8_t *at, uint64_t value)
{
    return put_u32(put_u32(at, (uint32_t)(value >> 32)), (uint32_t)value);
}

static uint8_t *put_bytes(uint8_t *at, weave_bytes bytes)
{
    for (size_t i = 0; i < bytes.len; i++) {
        at[i] = bytes.at[i];
    }
    return at + bytes.len;
}

/* A float travels as the integer of its bits. */
union binary32 {
    float value;
    uint32_t bits;
};

static const uint32_t MINUS_ZERO = 0x80000000, TWENTY = 0x41A00000;

static float get_float(const uint8_t *at)
{
    union binary32 number;
    number.bits = get_u32(at);
    if (number.bits == MINUS_ZERO) {
        number.bits = 0; /* W1-REQ-007 */
    }
    return number.value;
}

static uint32_t float_bits(float value)
{
    union binary32 number;
    number.value = value;
    return number.bits == MINUS_ZERO ? 0 : number.bits;
}

/* A length that can't be said in 32 bits must not look like a small one. */
static uint32_t clamp_u32(size_t len)
{
    uint32_t low = (uint32_t)len;
    return low == len ? low : UINT32_MAX;
}

/* ---- Faults ---- */

static const struct {
    uint32_t code, status;
    const char *name;
} ERRORS[] = {
    {WEAVE_CODE_INVALID_MAGIC, 400, "INVALID_MAGIC"},
    {WEAVE_CODE_UNSUPPORTED_VERSION, 400, "UNSUPPORTED_VERSION"},
    {WEAVE_CODE_INVALID_MODEL_ID, 400, "INVALID_MODEL_ID"},
    {WEAVE_CODE_INVALID_PROMPT, 400, "INVALID_PROMPT"},
    {WEAVE_CODE_INVALID_DIMENSIONS, 400, "INVALID_DIMENSIONS"},
    {WEAVE_CODE_INVALID_STEPS, 400, "INVALID_STEPS"},
    {WEAVE_CODE_INVALID_CFG, 400, "INVALID_CFG"},
    {WEAVE_CODE_OUT_OF_MEMORY, 500, "OUT_OF_MEMORY"},
    {WEAVE_CODE_GPU_ERROR, 500, "GPU_ERROR"},
    {WEAVE_CODE_TIMEOUT, 500, "TIMEOUT"},
    {WEAVE_CODE_MALFORMED, 400, "MALFORMED"},
    {WEAVE_CODE_TOO_LARGE, 400, "TOO_LARGE"},
    {WEAVE_CODE_UNSUPPORTED_TYPE, 400, "UNSUPPORTED_TYPE"},
    {WEAVE_CODE_BUSY, 500, "BUSY"},
    {WEAVE_CODE_SHUTTING_DOWN, 500, "SHUTTING_DOWN"},
    {WEAVE_CODE_INTERNAL, 500, "INTERNAL"},
};

uint32_t weave_error_status(uint32_t error_code)
{
    for (size_t i = 0; i < sizeof ERRORS / sizeof ERRORS[0]; i++) {
        if (ERRORS[i].code == error_code) {
            return ERRORS[i].status;
        }
    }
    return 0;
}

const char *weave_error_name(uint32_t error_code)
{
    for (size_t i = 0; i < sizeof ERRORS / sizeof ERRORS[0]; i++) {
        if (ERRORS[i].code == error_code) {
            return ERRORS[i].name;
        }
    }
    return NULL;
}

const char *weave_field_name(weave_field field)
{
    static const char *const NAMES[] = {
        [WEAVE_FIELD_NONE] = "",
        [WEAVE_FIELD_MAGIC] = "magic",
        [WEAVE_FIELD_VERSION] = "version",
        [WEAVE_FIELD_MSG_TYPE] = "msg_type",
        [WEAVE_FIELD_PAYLOAD_LEN] = "payload_len",
        [WEAVE_FIELD_MODEL_ID] = "model_id",
        [WEAVE_FIELD_WIDTH] = "width",
        [WEAVE_FIELD_HEIGHT] = "height",
        [WEAVE_FIELD_STEPS] = "steps",
        [WEAVE_FIELD_CFG_SCALE] = "cfg_scale",
        [WEAVE_FIELD_CLIP_L_OFFSET] = "clip_l_offset",
        [WEAVE_FIELD_CLIP_L_LENGTH] = "clip_l_length",
        [WEAVE_FIELD_CLIP_L] = "clip_l",
        [WEAVE_FIELD_CLIP_G_OFFSET] = "clip_g_offset",
        [WEAVE_FIELD_CLIP_G_LENGTH] = "clip_g_length",
        [WEAVE_FIELD_CLIP_G] = "clip_g",
        [WEAVE_FIELD_T5_OFFSET] = "t5_offset",
        [WEAVE_FIELD_T5_LENGTH] = "t5_length",
        [WEAVE_FIELD_T5] = "t5",
        [WEAVE_FIELD_STATUS] = "status",
        [WEAVE_FIELD_IMAGE_WIDTH] = "image_width",
        [WEAVE_FIELD_IMAGE_HEIGHT] = "image_height",
        [WEAVE_FIELD_CHANNELS] = "channels",
        [WEAVE_FIELD_IMAGE_DATA_LEN] = "image_data_len",
        [WEAVE_FIELD_ERROR_CODE] = "error_code",
        [WEAVE_FIELD_ERROR_MSG] = "error_msg",
    };
    return (size_t)field < sizeof NAMES / sizeof NAMES[0] ? NAMES[field] : "";
}

/* Text that is cut off where the room ends, and always ends with a 0. */
struct text {
    char *out;
    size_t room, len;
};

static void say_char(struct text *text, char c)
{
    if (text->len + 1 < text->room) {
        text->out[text->len++] = c;
    }
    text->out[text->len] = '\0';
}

static void say(struct text *text, const char *words)
{
    while (*words != '\0') {
        say_char(text, *words++);
    }
}

static void say_decimal(struct text *text, uint32_t value)
{
    uint32_t unit = 1;
    while (value / unit >= 10) {
        unit *= 10;
    }
    for (; unit > 0; unit /= 10) {
        say_char(text, (char)('0' + value / unit % 10));
    }
}

static void say_hex(struct text *text, uint32_t value, int digits)
{
    while (digits > 0) {
        digits--;
        say_char(text, "0123456789ABCDEF"[value >> (4 * digits) & 0xF]);
    }
}

/* A decimal number of up to nine digits after the point, or the bits where that would be long or too inexact. */
static void say_float(struct text *text, uint32_t bits)
{
    uint32_t exponent = bits >> 23 & 0xFF, fraction = bits & 0x7FFFFF;
    if (exponent == 0xFF && fraction != 0) {
        say(text, "NaN");
        return;
    }
    if (exponent < 117 || (exponent > 150 && exponent != 0xFF)) {
        say(text, "0x");
        say_hex(text, bits, 8);
        say(text, " (the bits of a float)");
        return;
    }
    if (bits >> 31 != 0) {
        say_char(text, '-');
    }
    if (exponent == 0xFF) {
        say(text, "infinity");
        return;
    }
    const uint32_t point = 150 - exponent; /* how many binary digits stand after the number's point: 0 to 33 */
    uint64_t number = fraction | 0x800000, after_point = ((uint64_t)1 << point) - 1;
    say_decimal(text, (uint32_t)(number >> point));
    say_char(text, '.');
    int digits = 0;
    do {
        number = (number & after_point) * 10;
        say_char(text, (char)('0' + (int)(number >> point)));
        digits++;
    } while ((number & after_point) != 0 && digits < 9);
}

static void say_magic(struct text *text, uint32_t magic)
{
    for (int shift = 24; shift >= 0; shift -= 8) {
        say_hex(text, magic >> shift & 0xFF, 2);
        say(text, shift > 0 ? " " : "");
    }
}

static void say_range(struct text *text, uint32_t min, uint32_t max)
{
    if (max == UINT32_MAX) {
        say(text, ", must be at least ");
        say_decimal(text, min);
    } else if (min == max) {
        say(text, ", must be ");
        say_decimal(text, min);
    } else if (min == 0) {
        say(text, ", must be at most ");
        say_decimal(text, max);
    } else {
        say(text, ", must be ");
        say_decimal(text, min);
        say(text, " to ");
        say_decimal(text, max);
    }
}

static const uint32_t MAGIC = 0x57455645; /* "WEVE" */

size_t weave_fault_text(const weave_fault *fault, char *out, size_t room)
{
    struct text text = {out, room, 0};
    const char *field = weave_field_name(fault->field);
    say(&text, fault->limit == WEAVE_LIMIT_ROOM ? "the buffer" : field);
    switch (fault->limit) {
    case WEAVE_LIMIT_RANGE:
    case WEAVE_LIMIT_SIDE:
        say(&text, " is ");
        say_decimal(&text, fault->value);
        say_range(&text, fault->min, fault->max);
        say(&text, fault->limit == WEAVE_LIMIT_SIDE ? " and a multiple of 64" : "");
        break;
    case WEAVE_LIMIT_EITHER:
        say(&text, " is ");
        say_decimal(&text, fault->value);
        say(&text, ", must be ");
        say_decimal(&text, fault->min);
        say(&text, " or ");
        say_decimal(&text, fault->max);
        break;
    case WEAVE_LIMIT_MAGIC:
        say(&text, " is ");
        say_magic(&text, fault->value);
        say(&text, ", must be ");
        say_magic(&text, MAGIC);
        break;
    case WEAVE_LIMIT_TYPE:
        say(&text, " is 0x");
        say_hex(&text, fault->value, 4);
        say(&text, ", must be 0x");
        say_hex(&text, fault->min, 4);
        if (fault->min != fault->max) {
            say(&text, " or 0x");
            say_hex(&text, fault->max, 4);
        }
        break;
    case WEAVE_LIMIT_FLOAT:
        say(&text, " is ");
        say_float(&text, fault->value);
        say(&text, ", must be ");
        say_decimal(&text, fault->min);
        say(&text, ".0 to ");
        say_decimal(&text, fault->max);
        say(&text, ".0");
        break;
    case WEAVE_LIMIT_WITHIN:
        say(&text, " is ");
        say_decimal(&text, fault->value);
        say(&text, " and the length ");
        say_decimal(&text, fault->length);
        say(&text, ", must end within the ");
        say_decimal(&text, fault->max);
        say(&text, " bytes of prompt_data");
        break;
    case WEAVE_LIMIT_UTF_8:
        say(&text, " is not UTF-8 at byte ");
        say_decimal(&text, fault->value);
        say(&text, ", must be UTF-8");
        break;
    case WEAVE_LIMIT_NO_NUL:
        say(&text, " has the value 0 at byte ");
        say_decimal(&text, fault->value);
        say(&text, ", must have no byte 0");
        break;
    case WEAVE_LIMIT_CODE:
        say(&text, " is ");
        say_decimal(&text, fault->value);
        say(&text, ", must be a code of version 1");
        break;
    case WEAVE_LIMIT_ROOM:
        say(&text, " has ");
        say_decimal(&text, fault->value);
        say(&text, " bytes, must have at least ");
        say_decimal(&text, fault->min);
        break;
    }
    return text.len;
}

/* ---- UTF-8 ---- */

static const uint32_t NOT_UTF_8 = 0xFFFFFFFF;

/*
 * Gives the character at the front of `len` bytes, at least one, and its length. If there is none, *character is
 * NOT_UTF_8, and the length is that of the beginning of one, or 1: what a single U+FFFD is to replace.
 */
static size_t decode(const uint8_t *at, size_t len, uint32_t *character)
{
    uint8_t first = at[0], least = 0x80, most = 0xBF; /* the range of the second byte */
    size_t more;
    if (first < 0x80) {
        *character = first;
        return 1;
    }
    if (first >= 0xC2 && first <= 0xDF) { /* C0 and C1 would be longer than they need to be */
        more = 1;
    } else if (first >= 0xE0 && first <= 0xEF) {
        more = 2;
        least = first == 0xE0 ? 0xA0 : least; /* no longer than it needs to be */
        most = first == 0xED ? 0x9F : most;   /* no surrogate */
    } else if (first >= 0xF0 && first <= 0xF4) {
        more = 3;
        least = first == 0xF0 ? 0x90 : least;
        most = first == 0xF4 ? 0x8F : most; /* nothing beyond U+10FFFF */
    } else {
        *character = NOT_UTF_8;
        return 1;
    }
    uint32_t value = first & (0x3Fu >> more);
    for (size_t i = 1; i <= more; i++) {
        if (i == len || at[i] < least || at[i] > most) {
            *character = NOT_UTF_8;
            return i;
        }
        value = value << 6 | (at[i] & 0x3Fu);
        least = 0x80;
        most = 0xBF;
    }
    *character = value;
    return more + 1;
}

/* ---- Checks: each gives whether all is well, and fills in *fault if not ---- */

static bool in_range(weave_fault *fault, const char *requirement, weave_field field, uint32_t value, uint32_t min,
                     uint32_t max)
{
    if (value >= min && value <= max) {
        return true;
    }
    *fault = (weave_fault){requirement, field, WEAVE_LIMIT_RANGE, value, 0, min, max};
    return false;
}

static bool is_either(weave_fault *fault, const char *requirement, weave_field field, uint32_t value, uint32_t one,
                      uint32_t other)
{
    if (value == one || value == other) {
        return true;
    }
    *fault = (weave_fault){requirement, field, WEAVE_LIMIT_EITHER, value, 0, one, other};
    return false;
}

static bool is_type(weave_fault *fault, const char *requirement, uint32_t value, uint32_t one, uint32_t other)
{
    if (value == one || value == other) {
        return true;
    }
    *fault = (weave_fault){requirement, WEAVE_FIELD_MSG_TYPE, WEAVE_LIMIT_TYPE, value, 0, one, other};
    return false;
}

static bool is_side(weave_fault *fault, const char *requirement, weave_field field, uint32_t value)
{
    if (value >= 64 && value <= 2048 && value % 64 == 0) {
        return true;
    }
    *fault = (weave_fault){requirement, field, WEAVE_LIMIT_SIDE, value, 0, 64, 2048};
    return false;
}

static bool is_cfg_scale(weave_fault *fault, float value)
{
    /* Floats that are not negative are ordered as their bits are; those of the negative ones are larger. */
    uint32_t bits = float_bits(value);
    if (bits <= TWENTY) {
        return true;
    }
    bool finite = (bits >> 23 & 0xFF) != 0xFF;
    const char *requirement = finite ? "W1-REQ-001" : "W1-REQ-007";
    *fault = (weave_fault){requirement, WEAVE_FIELD_CFG_SCALE, WEAVE_LIMIT_FLOAT, bits, 0, 0, 20};
    return false;
}

/* Such that it can't overflow (W1-VAL-002). */
static bool is_within(weave_fault *fault, weave_field field, uint32_t offset, uint32_t length, uint32_t size)
{
    if (offset <= size && length <= size - offset) {
        return true;
    }
    *fault = (weave_fault){"W1-REQ-002", field, WEAVE_LIMIT_WITHIN, offset, length, 0, size};
    return false;
}

static bool is_utf_8(weave_fault *fault, const char *requirement, weave_field field, weave_bytes text)
{
    size_t at = 0;
    while (at < text.len) {
        uint32_t character;
        size_t len = decode(text.at + at, text.len - at, &character);
        if (character == NOT_UTF_8) {
            *fault = (weave_fault){requirement, field, WEAVE_LIMIT_UTF_8, clamp_u32(at), 0, 0, 0};
            return false;
        }
        at += len;
    }
    return true;
}

static bool has_no_nul(weave_fault *fault, weave_field field, weave_bytes text)
{
    for (size_t at = 0; at < text.len; at++) {
        if (text.at[at] == 0) {
            *fault = (weave_fault){"W1-REQ-003", field, WEAVE_LIMIT_NO_NUL, clamp_u32(at), 0, 0, 0};
            return false;
        }
    }
    return true;
}

static bool has_room(weave_fault *fault, size_t room, uint32_t needed)
{
    if (room >= needed) {
        return true;
    }
    *fault = (weave_fault){NULL, WEAVE_FIELD_NONE, WEAVE_LIMIT_ROOM, clamp_u32(room), 0, needed, 0};
    return false;
}

static const struct {
    weave_field offset, length, text;
} PROMPT_FIELDS[3] = {
    {WEAVE_FIELD_CLIP_L_OFFSET, WEAVE_FIELD_CLIP_L_LENGTH, WEAVE_FIELD_CLIP_L},
    {WEAVE_FIELD_CLIP_G_OFFSET, WEAVE_FIELD_CLIP_G_LENGTH, WEAVE_FIELD_CLIP_G},
    {WEAVE_FIELD_T5_OFFSET, WEAVE_FIELD_T5_LENGTH, WEAVE_FIELD_T5},
};

/* The functions from here to the request reader give 0 or the step of section 7 that fails; both sides use them. */

static int check_values(const weave_request *request, weave_fault *fault)
{
    const weave_prompt *prompts[3] = {&request->clip_l, &request->clip_g, &request->t5};
    if (!is_side(fault, "W1-REQ-001", WEAVE_FIELD_WIDTH, request->width) ||
        !is_side(fault, "W1-REQ-001", WEAVE_FIELD_HEIGHT, request->height)) {
        return 8;
    }
    if (!in_range(fault, "W1-REQ-001", WEAVE_FIELD_STEPS, request->steps, 1, 100)) {
        return 9;
    }
    if (!is_cfg_scale(fault, request->cfg_scale)) {
        return 10;
    }
    for (int i = 0; i < 3; i++) {
        if (!in_range(fault, "W1-REQ-001", PROMPT_FIELDS[i].length, prompts[i]->length, 1, WEAVE_MAX_PROMPT_LEN)) {
            return 11;
        }
    }
    return 0;
}

static weave_bytes text_of(const weave_prompt *prompt)
{
    return (weave_bytes){prompt->text, (size_t)prompt->length};
}

static int check_texts(const weave_request *request, weave_fault *fault)
{
    const weave_prompt *prompts[3] = {&request->clip_l, &request->clip_g, &request->t5};
    for (int i = 0; i < 3; i++) {
        if (!is_utf_8(fault, "W1-REQ-003", PROMPT_FIELDS[i].text, text_of(prompts[i]))) {
            return 14;
        }
    }
    for (int i = 0; i < 3; i++) {
        if (!has_no_nul(fault, PROMPT_FIELDS[i].text, text_of(prompts[i]))) {
            return 15;
        }
    }
    return 0;
}

/* ---- Taking bytes of a stream ---- */

static size_t take(weave_bytes *in, uint32_t wanted)
{
    size_t taken = in->len < wanted ? in->len : (size_t)wanted;
    if (taken > 0) { /* in->at may be NULL otherwise */
        in->at += taken;
        in->len -= taken;
    }
    return taken;
}

/* Takes bytes into `to` until there are `want` of them, and gives whether there are. */
static bool fill(uint8_t *to, uint32_t *have, uint32_t want, weave_bytes *in)
{
    if (*have < want) {
        const uint8_t *from = in->at;
        const size_t taken = take(in, want - *have);
        put_bytes(to + *have, (weave_bytes){from, taken});
        *have += (uint32_t)taken;
    }
    return *have >= want;
}

/* The same, but drops the bytes. */
static bool skip(uint32_t *have, uint32_t want, weave_bytes *in)
{
    if (*have < want) {
        *have += (uint32_t)take(in, want - *have);
    }
    return *have >= want;
}

enum { INCOMPLETE = -1 };

/*
 * Takes bytes of a header, and checks the magic before payload_len (W1-FRM-005), as soon as its four bytes have come: a
 * peer that speaks something else may wait for an answer after a few bytes. Gives 0 if the header is whole, INCOMPLETE,
 * or the step of section 7 that fails. Nothing reads the reserved field (W1-HDR-005).
 */
static int take_header(uint8_t *header, uint32_t *have, weave_bytes *in, uint32_t max_payload, const char *magic_rule,
                       const char *length_rule, weave_fault *fault)
{
    if (!fill(header, have, MAGIC_LEN, in)) {
        return INCOMPLETE;
    }
    if (get_u32(header) != MAGIC) {
        *fault = (weave_fault){magic_rule, WEAVE_FIELD_MAGIC, WEAVE_LIMIT_MAGIC, get_u32(header), 0, 0, 0};
        return 1;
    }
    if (!fill(header, have, WEAVE_HEADER_LEN, in)) {
        return INCOMPLETE;
    }
    return in_range(fault, length_rule, WEAVE_FIELD_PAYLOAD_LEN, get_u32(header + 8), 0, max_payload) ? 0 : 2;
}

/* ---- Reading requests ---- */

static const weave_error_code ERROR_OF_STEP[] = {
    [1] = WEAVE_CODE_INVALID_MAGIC,
    [2] = WEAVE_CODE_TOO_LARGE,
    [3] = WEAVE_CODE_UNSUPPORTED_VERSION,
    [4] = WEAVE_CODE_UNSUPPORTED_TYPE,
    [5] = WEAVE_CODE_MALFORMED,
    [6] = WEAVE_CODE_INVALID_MODEL_ID,
    [7] = WEAVE_CODE_MALFORMED,
    [8] = WEAVE_CODE_INVALID_DIMENSIONS,
    [9] = WEAVE_CODE_INVALID_STEPS,
    [10] = WEAVE_CODE_INVALID_CFG,
    [11] = WEAVE_CODE_INVALID_PROMPT,
    [12] = WEAVE_CODE_INVALID_PROMPT,
    [13] = WEAVE_CODE_INVALID_PROMPT,
    [14] = WEAVE_CODE_INVALID_PROMPT,
    [15] = WEAVE_CODE_INVALID_PROMPT,
};

void weave_request_reader_init(weave_request_reader *reader, uint8_t payload[WEAVE_MAX_REQUEST_PAYLOAD])
{
    *reader = (weave_request_reader){.payload = payload};
}

static weave_event refuse(weave_request_reader *reader, int step, uint64_t request_id)
{
    reader->refusal.request_id = request_id;
    reader->refusal.step = step;
    reader->refusal.error_code = ERROR_OF_STEP[step];
    return WEAVE_REFUSED;
}

static void get_prompt(weave_prompt *prompt, const uint8_t *at)
{
    prompt->offset = get_u32(at);
    prompt->length = get_u32(at + 4);
}

/* The order of checks from step 3 on (W1-VAL-001). A payload that is too long for a request is here but for its end. */
static int check_frame(weave_request_reader *reader, weave_fault *fault)
{
    const uint8_t *payload = reader->payload;
    const uint32_t payload_len = reader->payload_len;
    weave_request *request = &reader->request;
    if (!in_range(fault, "W1-VER-003", WEAVE_FIELD_VERSION, get_u16(reader->header + 4), VERSION, VERSION)) {
        return 3;
    }
    if (!is_type(fault, "W1-VAL-001", get_u16(reader->header + 6), TYPE_REQUEST, TYPE_REQUEST)) {
        return 4;
    }
    if (!in_range(fault, "W1-VAL-001", WEAVE_FIELD_PAYLOAD_LEN, payload_len, ANY_MODEL_LEN, UINT32_MAX)) {
        return 5;
    }
    request->request_id = get_u64(payload);
    request->model_id = get_u32(payload + 8);
    if (!in_range(fault, "W1-REQ-001", WEAVE_FIELD_MODEL_ID, request->model_id, 0, 0)) {
        return 6;
    }
    if (!in_range(fault, "W1-VAL-001", WEAVE_FIELD_PAYLOAD_LEN, payload_len, REQUEST_LEN, UINT32_MAX)) {
        return 7;
    }
    request->width = get_u32(payload + 12);
    request->height = get_u32(payload + 16);
    request->steps = get_u32(payload + 20);
    request->cfg_scale = get_float(payload + 24);
    request->seed = get_u64(payload + 28); /* all 64 bits of it (W1-REQ-010) */
    get_prompt(&request->clip_l, payload + 36);
    get_prompt(&request->clip_g, payload + 44);
    get_prompt(&request->t5, payload + 52);
    int step = check_values(request, fault);
    if (step != 0) {
        return step;
    }
    if (!in_range(fault, "W1-FRM-001", WEAVE_FIELD_PAYLOAD_LEN, payload_len, 0, WEAVE_MAX_REQUEST_PAYLOAD)) {
        return 12;
    }
    /* Ranges may overlap, and need not cover all of prompt_data (W1-REQ-005, W1-REQ-006). */
    weave_prompt *prompts[3] = {&request->clip_l, &request->clip_g, &request->t5};
    for (int i = 0; i < 3; i++) {
        weave_prompt *prompt = prompts[i];
        if (!is_within(fault, PROMPT_FIELDS[i].offset, prompt->offset, prompt->length, payload_len - REQUEST_LEN)) {
            return 13;
        }
        prompt->text = payload + REQUEST_LEN + prompt->offset;
    }
    return check_texts(request, fault);
}

weave_event weave_read_request(weave_request_reader *reader, weave_bytes *in)
{
    weave_fault *fault = &reader->refusal.fault;
    if (reader->closed) {
        return WEAVE_GIVEN_UP;
    }
    if (reader->header_have < WEAVE_HEADER_LEN) {
        int step = take_header(reader->header, &reader->header_have, in, WEAVE_MAX_SKIPPED_PAYLOAD, "W1-FRM-004",
                               "W1-FRM-002", fault);
        if (step == INCOMPLETE) {
            return WEAVE_MORE;
        }
        if (step != 0) {
            reader->closed = true;
            refuse(reader, step, 0); /* where a payload begins can't be known: request_id 0 (W1-ERR-001) */
            return WEAVE_GIVEN_UP;
        }
        /* Of a payload that no request can have, the fixed fields decide; the rest is skipped (W1-FRM-003). */
        reader->payload_len = get_u32(reader->header + 8);
        reader->payload_kept =
            reader->payload_len <= WEAVE_MAX_REQUEST_PAYLOAD ? reader->payload_len : (uint32_t)REQUEST_LEN;
        reader->payload_have = 0;
    }
    if (!fill(reader->payload, &reader->payload_have, reader->payload_kept, in) ||
        !skip(&reader->payload_have, reader->payload_len, in)) {
        return WEAVE_MORE;
    }
    reader->header_have = 0;
    int step = check_frame(reader, fault);
    if (step != 0) {
        return refuse(reader, step, reader->payload_len >= REQUEST_ID_LEN ? get_u64(reader->payload) : 0);
    }
    return WEAVE_REQUEST;
}

weave_state weave_request_reader_state(const weave_request_reader *reader)
{
    if (reader->closed) {
        return WEAVE_CLOSED;
    }
    return reader->header_have > 0 ? WEAVE_INSIDE_A_FRAME : WEAVE_BETWEEN_FRAMES;
}

/* ---- Reading answers ---- */

void weave_answer_reader_init(weave_answer_reader *reader, uint8_t *message, size_t message_room)
{
    *reader = (weave_answer_reader){.message = message, .message_room = message_room};
}

/* What a client can't expect ends the connection (W1-FRM-010), but an error may be of any version (W1-VER-006). */
static bool check_answer_header(weave_answer_reader *reader)
{
    const uint32_t version = get_u16(reader->head + 4), msg_type = get_u16(reader->head + 6);
    const uint32_t payload_len = get_u32(reader->head + 8);
    weave_fault *fault = &reader->fault;
    if (!is_type(fault, "W1-FRM-010", msg_type, TYPE_RESPONSE, TYPE_ERROR)) {
        return false;
    }
    reader->is_error = msg_type == TYPE_ERROR;
    if (!reader->is_error && !in_range(fault, "W1-FRM-010", WEAVE_FIELD_VERSION, version, VERSION, VERSION)) {
        return false;
    }
    const uint32_t fixed_len = reader->is_error ? ERROR_LEN : RESPONSE_LEN;
    reader->head_len = WEAVE_HEADER_LEN + fixed_len;
    return in_range(fault, reader->is_error ? "W1-ERR-008" : "W1-RSP-006", WEAVE_FIELD_PAYLOAD_LEN, payload_len,
                    fixed_len, UINT32_MAX);
}

static bool check_image(weave_fault *fault, const char *requirement, const weave_response *response)
{
    return is_side(fault, requirement, WEAVE_FIELD_IMAGE_WIDTH, response->image_width) &&
           is_side(fault, requirement, WEAVE_FIELD_IMAGE_HEIGHT, response->image_height) &&
           is_either(fault, requirement, WEAVE_FIELD_CHANNELS, response->channels, 3, 4);
}

/* At most 2048 * 2048 * 4 once check_image has passed: it can't overflow (W1-RSP-005). */
static uint32_t image_len(const weave_response *response)
{
    return response->image_width * response->image_height * response->channels;
}

static bool check_response(weave_answer_reader *reader)
{
    const uint8_t *payload = reader->head + WEAVE_HEADER_LEN;
    const uint32_t payload_len = get_u32(reader->head + 8);
    weave_fault *fault = &reader->fault;
    weave_response *response = &reader->response;
    *response = (weave_response){
        .request_id = get_u64(payload),
        .status = get_u32(payload + 8),
        .generation_time_ms = get_u32(payload + 12),
        .image_width = get_u32(payload + 16),
        .image_height = get_u32(payload + 20),
        .channels = get_u32(payload + 24),
        .image_data_len = get_u32(payload + 28),
    };
    if (!in_range(fault, "W1-RSP-005", WEAVE_FIELD_STATUS, response->status, STATUS_OK, STATUS_OK) ||
        !check_image(fault, "W1-RSP-005", response)) {
        return false;
    }
    const uint32_t len = image_len(response);
    reader->body_len = len;
    return in_range(fault, "W1-RSP-005", WEAVE_FIELD_IMAGE_DATA_LEN, response->image_data_len, len, len) &&
           in_range(fault, "W1-RSP-006", WEAVE_FIELD_PAYLOAD_LEN, payload_len, RESPONSE_LEN + len, UINT32_MAX);
}

static bool check_error(weave_answer_reader *reader)
{
    const uint8_t *payload = reader->head + WEAVE_HEADER_LEN;
    const uint32_t payload_len = get_u32(reader->head + 8);
    weave_fault *fault = &reader->fault;
    weave_error *error = &reader->error;
    *error = (weave_error){
        .request_id = get_u64(payload),
        .status = get_u32(payload + 8),
        .error_code = get_u32(payload + 12), /* any (W1-ERR-006) */
        .error_msg_len = get_u16(payload + 16),
        .error_msg = {reader->message, 0},
    };
    reader->body_len = error->error_msg_len;
    return is_either(fault, "W1-ERR-007", WEAVE_FIELD_STATUS, error->status, 400, 500) &&
           in_range(fault, "W1-ERR-008", WEAVE_FIELD_PAYLOAD_LEN, payload_len, ERROR_LEN + error->error_msg_len,
                    UINT32_MAX);
}

static weave_event break_off(weave_answer_reader *reader)
{
    reader->closed = true;
    return WEAVE_BROKEN;
}

weave_event weave_read_answer(weave_answer_reader *reader, weave_bytes *in)
{
    if (reader->closed) {
        return WEAVE_BROKEN;
    }
    if (reader->head_have < WEAVE_HEADER_LEN) {
        int step = take_header(reader->head, &reader->head_have, in, WEAVE_MAX_RESPONSE_PAYLOAD, "W1-FRM-006",
                               "W1-FRM-007", &reader->fault);
        if (step == INCOMPLETE) {
            return WEAVE_MORE;
        }
        if (step != 0 || !check_answer_header(reader)) {
            return break_off(reader); /* W1-RSP-008 here and below */
        }
        reader->told = false;
        reader->body_have = reader->trailing_have = 0;
    }
    if (!fill(reader->head, &reader->head_have, reader->head_len, in)) {
        return WEAVE_MORE;
    }
    if (!reader->told) {
        if (!(reader->is_error ? check_error(reader) : check_response(reader))) {
            return break_off(reader);
        }
        reader->told = true;
        reader->trailing = get_u32(reader->head + 8) - (reader->head_len - WEAVE_HEADER_LEN) - reader->body_len;
        if (!reader->is_error) {
            return WEAVE_RESPONSE;
        }
    }
    const weave_bytes body = {in->at, take(in, reader->body_len - reader->body_have)};
    reader->body_have += (uint32_t)body.len;
    if (reader->is_error) {
        size_t *kept = &reader->error.error_msg.len;
        for (size_t i = 0; i < body.len && *kept < reader->message_room; i++) {
            reader->message[(*kept)++] = body.at[i];
        }
    } else if (body.len > 0) {
        reader->pixels = body;
        reader->pixels_at = reader->body_have - (uint32_t)body.len;
        return WEAVE_PIXELS;
    }
    /* A later version may have appended fields, which are ignored (W1-RSP-007, W1-ERR-009). */
    if (reader->body_have < reader->body_len || !skip(&reader->trailing_have, reader->trailing, in)) {
        return WEAVE_MORE;
    }
    reader->head_have = 0;
    return reader->is_error ? WEAVE_ERROR : WEAVE_RESPONSE_END;
}

weave_state weave_answer_reader_state(const weave_answer_reader *reader)
{
    if (reader->closed) {
        return WEAVE_CLOSED;
    }
    return reader->head_have > 0 ? WEAVE_INSIDE_A_FRAME : WEAVE_BETWEEN_FRAMES;
}

/* ---- Writing ---- */

/* W1-HDR-001 to W1-HDR-004. */
static uint8_t *put_header(uint8_t *at, uint32_t msg_type, uint32_t payload_len)
{
    at = put_u32(at, MAGIC);
    at = put_u16(at, VERSION);
    at = put_u16(at, msg_type);
    at = put_u32(at, payload_len);
    return put_u32(at, 0);
}

size_t weave_write_request(const weave_request *request, uint8_t *out, size_t room, weave_fault *fault)
{
    if (!in_range(fault, "W1-REQ-001", WEAVE_FIELD_MODEL_ID, request->model_id, 0, 0) ||
        check_values(request, fault) != 0 || check_texts(request, fault) != 0) {
        return 0;
    }
    const weave_prompt *prompts[3] = {&request->clip_l, &request->clip_g, &request->t5};
    uint32_t payload_len = REQUEST_LEN; /* at most 6,204 with what is checked (W1-FRM-001) */
    for (int i = 0; i < 3; i++) {
        payload_len += prompts[i]->length;
    }
    if (!has_room(fault, room, WEAVE_HEADER_LEN + payload_len)) {
        return 0;
    }
    uint8_t *at = put_header(out, TYPE_REQUEST, payload_len);
    at = put_u64(at, request->request_id);
    at = put_u32(at, request->model_id);
    at = put_u32(at, request->width);
    at = put_u32(at, request->height);
    at = put_u32(at, request->steps);
    at = put_u32(at, float_bits(request->cfg_scale));
    at = put_u64(at, request->seed);
    uint32_t offset = 0;
    for (int i = 0; i < 3; i++) { /* one after the other (W1-REQ-004) */
        at = put_u32(at, offset);
        at = put_u32(at, prompts[i]->length);
        offset += prompts[i]->length;
    }
    for (int i = 0; i < 3; i++) {
        at = put_bytes(at, text_of(prompts[i]));
    }
    return (size_t)(WEAVE_HEADER_LEN + payload_len);
}

size_t weave_write_response_head(const weave_response *response, uint8_t *out, size_t room, weave_fault *fault)
{
    if (!check_image(fault, NULL, response) || !has_room(fault, room, WEAVE_RESPONSE_HEAD_LEN)) {
        return 0;
    }
    uint8_t *at = put_header(out, TYPE_RESPONSE, RESPONSE_LEN + image_len(response));
    at = put_u64(at, response->request_id);
    at = put_u32(at, STATUS_OK); /* W1-RSP-004 */
    at = put_u32(at, response->generation_time_ms);
    at = put_u32(at, response->image_width);
    at = put_u32(at, response->image_height);
    at = put_u32(at, response->channels);
    put_u32(at, image_len(response));
    return WEAVE_RESPONSE_HEAD_LEN;
}

size_t weave_write_error(uint64_t request_id, uint32_t error_code, weave_bytes error_msg, uint8_t *out, size_t room,
                         weave_fault *fault)
{
    const uint32_t status = weave_error_status(error_code); /* W1-ERR-002 */
    if (status == 0) {
        *fault = (weave_fault){"W1-ERR-002", WEAVE_FIELD_ERROR_CODE, WEAVE_LIMIT_CODE, error_code, 0, 0, 0};
        return 0;
    }
    if (!is_utf_8(fault, NULL, WEAVE_FIELD_ERROR_MSG, error_msg)) {
        return 0;
    }
    if (error_msg.len > WEAVE_MAX_ERROR_MSG) { /* W1-ERR-003 */
        error_msg.len = WEAVE_MAX_ERROR_MSG;
        while ((error_msg.at[error_msg.len] & 0xC0) == 0x80) { /* the next byte goes on with a character */
            error_msg.len--;
        }
    }
    const uint32_t len = (uint32_t)error_msg.len;
    if (!has_room(fault, room, WEAVE_HEADER_LEN + ERROR_LEN + len)) {
        return 0;
    }
    uint8_t *at = put_header(out, TYPE_ERROR, ERROR_LEN + len);
    at = put_u64(at, request_id);
    at = put_u32(at, status);
    at = put_u32(at, error_code);
    at = put_u16(at, len);
    put_bytes(at, error_msg);
    return (size_t)(WEAVE_HEADER_LEN + ERROR_LEN + len);
}

size_t weave_write_refusal(const weave_refusal *refusal, uint8_t out[WEAVE_MAX_ERROR_FRAME])
{
    char text[WEAVE_MAX_ERROR_MSG + 1];
    weave_fault none;
    const weave_bytes error_msg = {(const uint8_t *)text, weave_fault_text(&refusal->fault, text, sizeof text)};
    return weave_write_error(refusal->request_id, refusal->error_code, error_msg, out, WEAVE_MAX_ERROR_FRAME, &none);
}

/* ---- Showing ---- */

static bool is_unfit(uint32_t character)
{
    return character < 0x20 || (character >= 0x7F && character <= 0x9F) ||    /* control characters */
           (character >= 0x2028 && character <= 0x202E) ||                    /* ends of lines, directions */
           (character >= 0x2066 && character <= 0x2069) ||                    /* isolated directions */
           character == 0x200E || character == 0x200F || character == 0x061C; /* marks of direction */
}

size_t weave_show(weave_bytes *text, char *out, size_t room)
{
    size_t shown = 0;
    while (text->len > 0) {
        uint32_t character;
        size_t len = decode(text->at, text->len, &character);
        char piece[9];
        struct text words = {piece, sizeof piece, 0};
        if (character == NOT_UTF_8) {
            say(&words, "\xEF\xBF\xBD"); /* U+FFFD */
        } else if (is_unfit(character)) {
            say(&words, "\\u{");
            say_hex(&words, character, character > 0xFF ? 4 : 2);
            say_char(&words, '}');
        } else {
            for (size_t i = 0; i < len; i++) {
                say_char(&words, (char)text->at[i]);
            }
        }
        if (shown + words.len >= room) {
            break;
        }
        for (size_t i = 0; i < words.len; i++) {
            out[shown++] = piece[i];
        }
        take(text, (uint32_t)len);
    }
    out[shown] = '\0';
    return shown;
}
