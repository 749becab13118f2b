/* Tests of weave.c: all vectors of spec/vectors, and what they don't reach. Exit code 1 if one fails. */
#include "weave.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned passed, failed;

/* Counts one test. What it says about a failure is that of printf. */
static void check(bool holds, const char *format, ...)
{
    if (holds) {
        passed++;
        return;
    }
    failed++;
    va_list values;
    va_start(values, format);
    fputs("FAILED: ", stdout);
    vprintf(format, values);
    putchar('\n');
    va_end(values);
}

static void *allocate(size_t len)
{
    void *memory = malloc(len > 0 ? len : 1);
    if (memory == NULL) {
        fputs("test: out of memory\n", stderr);
        exit(2);
    }
    return memory;
}

static weave_bytes ascii(const char *text)
{
    return (weave_bytes){(const uint8_t *)text, strlen(text)};
}

/* ---- Vectors: what a reader makes of one is written down in lines, as vectors.py does with what is expected ---- */

struct piece {
    const uint8_t *bytes;
    size_t len, times; /* times is 0 at the end of a list */
};

struct vector {
    const char *name;
    bool is_for_server, is_rewritable; /* the latter: a writer has to make the same first frame */
    const struct piece *pieces;
    const char *expected;
};

#include "vectors.h"

struct lines {
    char text[4096];
    size_t len;
};

static void add(struct lines *lines, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    const size_t room = sizeof lines->text - lines->len;
    const int len = vsnprintf(lines->text + lines->len, room, format, values);
    va_end(values);
    if (len < 0 || (size_t)len >= room) {
        fputs("test: the lines of a vector are longer than test.c expects\n", stderr);
        exit(2);
    }
    lines->len += (size_t)len;
}

static uint32_t crc_table[256];

static void make_crc_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        crc_table[i] = i;
        for (int bit = 0; bit < 8; bit++) {
            crc_table[i] = crc_table[i] >> 1 ^ (crc_table[i] & 1 ? 0xEDB88320 : 0);
        }
    }
}

static uint32_t crc_more(uint32_t crc, weave_bytes bytes)
{
    crc = ~crc;
    for (size_t i = 0; i < bytes.len; i++) {
        crc = crc >> 8 ^ crc_table[(crc ^ bytes.at[i]) & 0xFF];
    }
    return ~crc;
}

static void add_prompt(struct lines *lines, const weave_prompt *prompt)
{
    const uint32_t crc = crc_more(0, (weave_bytes){prompt->text, prompt->length});
    add(lines, " %" PRIu32 " %" PRIu32 " %08" PRIX32, prompt->offset, prompt->length, crc);
}

static void add_request(struct lines *lines, const weave_request *request)
{
    uint32_t cfg_scale;
    memcpy(&cfg_scale, &request->cfg_scale, sizeof cfg_scale);
    add(lines, "request %" PRIu64 " %" PRIu32 " %" PRIu32, request->request_id, request->model_id, request->width);
    add(lines, " %" PRIu32 " %" PRIu32 " %08" PRIX32, request->height, request->steps, cfg_scale);
    add(lines, " %" PRIu64, request->seed);
    add_prompt(lines, &request->clip_l);
    add_prompt(lines, &request->clip_g);
    add_prompt(lines, &request->t5);
    add(lines, "\n");
}

static void add_image(struct lines *lines, const char *what, const weave_response *response)
{
    add(lines, "%s %" PRIu64 " %" PRIu32, what, response->request_id, response->status);
    add(lines, " %" PRIu32 " %" PRIu32, response->generation_time_ms, response->image_width);
    add(lines, " %" PRIu32 " %" PRIu32, response->image_height, response->channels);
    add(lines, " %" PRIu32, response->image_data_len);
}

/* The frame that answers a refusal is read as a client reads it: what is said of it is what is on the wire. */
static void add_answer(struct lines *lines, const weave_refusal *refusal)
{
    uint8_t frame[WEAVE_MAX_ERROR_FRAME], message[WEAVE_MAX_ERROR_MSG];
    weave_answer_reader client;
    weave_answer_reader_init(&client, message, sizeof message);
    weave_bytes in = {frame, weave_write_refusal(refusal, frame)};
    const char *field = weave_field_name(refusal->fault.field);
    if (weave_read_answer(&client, &in) != WEAVE_ERROR || in.len > 0) {
        add(lines, "an answer that is no error\n");
        return;
    }
    const weave_error *error = &client.error;
    const bool names_field = error->error_msg.len > strlen(field) &&
                             memcmp(error->error_msg.at, field, strlen(field)) == 0; /* W1-ERR-004 */
    add(lines, "answer %" PRIu64 " %" PRIu32 " %" PRIu32, error->request_id, error->status, error->error_code);
    add(lines, " %d %s\n", refusal->step, names_field ? field : "not named");
}

static const char *state_name(weave_state state)
{
    static const char *const NAMES[] = {
        [WEAVE_BETWEEN_FRAMES] = "between-frames",
        [WEAVE_INSIDE_A_FRAME] = "inside-a-frame",
        [WEAVE_CLOSED] = "closed",
    };
    return NAMES[state];
}

/* What is written must be the beginning of what was read. */
static void check_rewritten(const char *name, weave_bytes stream, const uint8_t *frame, size_t len)
{
    check(len > 0 && len <= stream.len && memcmp(frame, stream.at, len) == 0, "%s: written otherwise", name);
}

/* One piece of a stream, as one call of the operating system delivers it. */
struct delivery {
    weave_bytes stream; /* what is still to come */
    size_t cut;
    uint8_t *copy; /* a block that ends where the piece does, so that a sanitizer sees who reads on; or NULL */
};

static weave_bytes deliver(struct delivery *delivery)
{
    weave_bytes in = {delivery->stream.at, delivery->stream.len};
    if (in.len > delivery->cut) {
        in.len = delivery->cut;
    }
    delivery->stream.at += in.len;
    delivery->stream.len -= in.len;
    free(delivery->copy);
    delivery->copy = NULL;
    if (in.len < 4096) {
        delivery->copy = allocate(in.len);
        memcpy(delivery->copy, in.at, in.len);
        in.at = delivery->copy;
    }
    return in;
}

static void serve_vector(const struct vector *vector, weave_bytes stream, size_t cut, struct lines *lines)
{
    uint8_t *payload = allocate(WEAVE_MAX_REQUEST_PAYLOAD);
    weave_request_reader reader;
    weave_request_reader_init(&reader, payload);
    struct delivery delivery = {stream, cut, NULL};
    weave_event event = WEAVE_MORE;
    while (event != WEAVE_GIVEN_UP && delivery.stream.len > 0) {
        weave_bytes in = deliver(&delivery);
        while ((event = weave_read_request(&reader, &in)) != WEAVE_MORE && event != WEAVE_GIVEN_UP) {
            if (event == WEAVE_REFUSED) {
                add_answer(lines, &reader.refusal);
                continue;
            }
            add_request(lines, &reader.request);
            if (vector->is_rewritable) {
                uint8_t frame[WEAVE_MAX_REQUEST_FRAME];
                weave_fault fault;
                size_t len = weave_write_request(&reader.request, frame, sizeof frame, &fault);
                check_rewritten(vector->name, stream, frame, len);
            }
        }
        if (event == WEAVE_GIVEN_UP) {
            add_answer(lines, &reader.refusal);
        } else if (in.len > 0) {
            add(lines, "bytes are left\n");
        }
    }
    add(lines, "%s\n", state_name(weave_request_reader_state(&reader)));
    free(delivery.copy);
    free(payload);
}

static void rewrite_error(const struct vector *vector, weave_bytes stream, const weave_error *error)
{
    uint8_t frame[WEAVE_MAX_ERROR_FRAME];
    weave_fault fault;
    size_t len = weave_write_error(error->request_id, error->error_code, error->error_msg, frame, sizeof frame, &fault);
    check_rewritten(vector->name, stream, frame, len);
}

static void rewrite_response(const struct vector *vector, weave_bytes stream, weave_response response)
{
    uint8_t head[WEAVE_RESPONSE_HEAD_LEN];
    weave_fault fault;
    response.status = response.image_data_len = 0; /* the writer's own affair */
    size_t len = weave_write_response_head(&response, head, sizeof head, &fault);
    check_rewritten(vector->name, stream, head, len);
}

static void receive_vector(const struct vector *vector, weave_bytes stream, size_t cut, struct lines *lines)
{
    uint8_t *message = allocate(65535);
    weave_answer_reader reader;
    weave_answer_reader_init(&reader, message, 65535);
    struct delivery delivery = {stream, cut, NULL};
    weave_event event = WEAVE_MORE;
    bool in_image = false;
    uint32_t crc = 0, pixels = 0;
    while (event != WEAVE_BROKEN && delivery.stream.len > 0) {
        weave_bytes in = deliver(&delivery);
        while ((event = weave_read_answer(&reader, &in)) != WEAVE_MORE && event != WEAVE_BROKEN) {
            if (event == WEAVE_RESPONSE) {
                in_image = true;
                crc = pixels = 0;
            } else if (event == WEAVE_PIXELS) {
                if (reader.pixels_at != pixels) {
                    add(lines, "pixels in the wrong place\n");
                }
                crc = crc_more(crc, reader.pixels);
                pixels += (uint32_t)reader.pixels.len;
            } else if (event == WEAVE_RESPONSE_END) {
                in_image = false;
                add_image(lines, "response", &reader.response);
                add(lines, " %" PRIu32 " %08" PRIX32 " %" PRIu32 "\n", pixels, crc, reader.trailing);
                if (vector->is_rewritable) {
                    rewrite_response(vector, stream, reader.response);
                }
            } else {
                const weave_error *error = &reader.error;
                add(lines, "error %" PRIu64 " %" PRIu32, error->request_id, error->status);
                add(lines, " %" PRIu32 " %" PRIu32 " %zu", error->error_code, error->error_msg_len,
                    error->error_msg.len);
                add(lines, " %08" PRIX32 " %" PRIu32 "\n", crc_more(0, error->error_msg), reader.trailing);
                if (vector->is_rewritable) {
                    rewrite_error(vector, stream, error);
                }
            }
        }
        if (event == WEAVE_BROKEN) {
            add(lines, "close %s %s\n", reader.fault.requirement, weave_field_name(reader.fault.field));
        } else if (in.len > 0) {
            add(lines, "bytes are left\n");
        }
    }
    if (in_image && pixels == 0) {
        add_image(lines, "head", &reader.response);
        add(lines, "\n");
    }
    add(lines, "%s\n", state_name(weave_answer_reader_state(&reader)));
    free(delivery.copy);
    free(message);
}

static weave_bytes put_together(const struct piece *pieces)
{
    size_t len = 0, at = 0;
    for (const struct piece *piece = pieces; piece->times > 0; piece++) {
        len += piece->len * piece->times;
    }
    uint8_t *stream = allocate(len);
    for (const struct piece *piece = pieces; piece->times > 0; piece++) {
        for (size_t i = 0; i < piece->times; i++) {
            memcpy(stream + at, piece->bytes, piece->len);
            at += piece->len;
        }
    }
    return (weave_bytes){stream, len};
}

static void test_vectors(void)
{
    static const size_t CUTS[] = {SIZE_MAX, 1, 7};
    for (size_t i = 0; i < sizeof VECTORS / sizeof VECTORS[0]; i++) {
        const struct vector *vector = &VECTORS[i];
        const weave_bytes stream = put_together(vector->pieces);
        for (size_t c = 0; c < sizeof CUTS / sizeof CUTS[0]; c++) {
            struct lines lines = {"", 0};
            (vector->is_for_server ? serve_vector : receive_vector)(vector, stream, CUTS[c], &lines);
            check(strcmp(lines.text, vector->expected) == 0, "%s in pieces of %zu:\n%s  and not\n%s", vector->name,
                  CUTS[c], lines.text, vector->expected);
        }
        free((void *)(uintptr_t)stream.at);
    }
}

/* ---- A request and a response that are right, for the tests below to change ---- */

static weave_prompt prompt(const char *text)
{
    return (weave_prompt){0, (uint32_t)strlen(text), (const uint8_t *)text};
}

static weave_request good_request(void)
{
    return (weave_request){
        .request_id = 1,
        .width = 64,
        .height = 128,
        .steps = 28,
        .cfg_scale = 7.0f,
        .clip_l = prompt("a cat"),
        .clip_g = prompt("a dog"),
        .t5 = prompt("both"),
    };
}

static weave_response good_response(void)
{
    return (weave_response){.request_id = 1, .image_width = 64, .image_height = 128, .channels = 3};
}

/* ---- Readers ---- */

static void test_server_after_giving_up(void)
{
    uint8_t payload[WEAVE_MAX_REQUEST_PAYLOAD], frame[WEAVE_MAX_REQUEST_FRAME];
    weave_request_reader reader;
    weave_request_reader_init(&reader, payload);
    weave_bytes in = ascii("GET");
    check(weave_read_request(&reader, &in) == WEAVE_MORE, "a magic of three bytes decides nothing");
    in = ascii(" / HTTP/1.1");
    check(weave_read_request(&reader, &in) == WEAVE_GIVEN_UP, "the fourth byte of a wrong magic decides");
    check(reader.refusal.error_code == WEAVE_CODE_INVALID_MAGIC && reader.refusal.request_id == 0,
          "with INVALID_MAGIC");

    const weave_request request = good_request();
    weave_fault fault;
    in = (weave_bytes){frame, weave_write_request(&request, frame, sizeof frame, &fault)};
    const size_t len = in.len;
    check(len > 0 && weave_read_request(&reader, &in) == WEAVE_GIVEN_UP && in.len == len, "nothing is read after that");
    check(weave_request_reader_state(&reader) == WEAVE_CLOSED, "the reader is closed");
}

/* Whatever the first frame breaks, the good one after it is not read. */
static void test_client_after_breaking_off(void)
{
    static const struct {
        size_t at; /* in the frame of an error */
        uint8_t value;
        const char *requirement;
    } CASES[] = {{3, 0, "W1-FRM-006"},   {8, 2, "W1-FRM-007"},  {7, 3, "W1-FRM-010"}, {7, 2, "W1-RSP-006"},
                 {11, 17, "W1-ERR-008"}, {26, 0, "W1-ERR-007"}, {33, 6, "W1-ERR-008"}};
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        uint8_t bad[WEAVE_MAX_ERROR_FRAME], good[WEAVE_MAX_ERROR_FRAME];
        weave_answer_reader reader;
        weave_answer_reader_init(&reader, NULL, 0);
        weave_fault fault;
        const size_t len = weave_write_error(1, WEAVE_CODE_BUSY, ascii("later"), good, sizeof good, &fault);
        memcpy(bad, good, len);
        bad[CASES[i].at] = CASES[i].value;
        weave_bytes in = {bad, len};
        const weave_event event = weave_read_answer(&reader, &in);
        check(event == WEAVE_BROKEN && strcmp(reader.fault.requirement, CASES[i].requirement) == 0, "a frame breaks %s",
              CASES[i].requirement);
        in = (weave_bytes){good, len};
        check(weave_read_answer(&reader, &in) == WEAVE_BROKEN && in.len == len, "nothing is read after that");
        check(weave_answer_reader_state(&reader) == WEAVE_CLOSED, "the reader is closed");
    }
}

static void test_nothing_to_read(void)
{
    uint8_t payload[WEAVE_MAX_REQUEST_PAYLOAD], head[WEAVE_RESPONSE_HEAD_LEN];
    weave_request_reader server;
    weave_request_reader_init(&server, payload);
    weave_bytes nothing = {NULL, 0};
    check(weave_read_request(&server, &nothing) == WEAVE_MORE, "a server takes no bytes at the beginning");
    check(weave_request_reader_state(&server) == WEAVE_BETWEEN_FRAMES, "and is between frames");

    weave_answer_reader client;
    weave_answer_reader_init(&client, NULL, 0);
    check(weave_read_answer(&client, &nothing) == WEAVE_MORE, "a client takes no bytes at the beginning");
    const weave_response response = good_response();
    weave_fault fault;
    weave_bytes in = {head, weave_write_response_head(&response, head, sizeof head, &fault)};
    check(weave_read_answer(&client, &in) == WEAVE_RESPONSE, "a response is told of before its pixels");
    check(weave_read_answer(&client, &in) == WEAVE_MORE, "then pixels are missing");
    check(weave_read_answer(&client, &nothing) == WEAVE_MORE, "no bytes are no pixels");
    check(weave_answer_reader_state(&client) == WEAVE_INSIDE_A_FRAME, "the client is inside a frame");
}

/* A client with little memory keeps the beginning of a message, and knows how long it was. */
static void test_message_room(void)
{
    uint8_t frame[WEAVE_MAX_ERROR_FRAME];
    weave_fault fault;
    const size_t len = weave_write_error(7, WEAVE_CODE_BUSY, ascii("the queue is full"), frame, sizeof frame, &fault);
    for (size_t room = 0; room <= 20; room++) {
        uint8_t *message = allocate(room);
        weave_answer_reader reader;
        weave_answer_reader_init(&reader, room > 0 ? message : NULL, room);
        weave_event event = WEAVE_MORE;
        for (size_t i = 0; i < len && event == WEAVE_MORE; i++) {
            weave_bytes in = {frame + i, 1};
            event = weave_read_answer(&reader, &in);
        }
        const size_t kept = room < 17 ? room : 17;
        check(event == WEAVE_ERROR && reader.error.error_msg_len == 17 && reader.error.error_msg.len == kept &&
                  memcmp(message, "the queue is full", kept) == 0,
              "a message of 17 bytes in room for %zu", room);
        free(message);
    }
}

/* W1-ERR-005, also where the text is what is wrong. */
static void test_no_prompt_in_refusals(void)
{
    static const char *const SECRETS[] = {"secret\xFF", "secret\0secret"};
    for (size_t i = 0; i < 2; i++) {
        uint8_t payload[WEAVE_MAX_REQUEST_PAYLOAD], frame[WEAVE_MAX_REQUEST_FRAME], answer[WEAVE_MAX_ERROR_FRAME];
        weave_request request = good_request();
        weave_fault fault;
        request.t5 = prompt("a secret");
        const size_t len = weave_write_request(&request, frame, sizeof frame, &fault);
        memcpy(frame + len - 7, SECRETS[i], 7);
        weave_request_reader reader;
        weave_request_reader_init(&reader, payload);
        weave_bytes in = {frame, len};
        check(weave_read_request(&reader, &in) == WEAVE_REFUSED, "a bad prompt is refused");
        const size_t answer_len = weave_write_refusal(&reader.refusal, answer);
        bool leaks = false;
        for (size_t at = 0; at + 6 <= answer_len; at++) {
            leaks = leaks || memcmp(answer + at, "secret", 6) == 0;
        }
        check(answer_len > 0 && !leaks, "the answer has nothing of the prompt");
    }
}

/* ---- What is said of a fault ---- */

static void test_fault_text(void)
{
    static const struct {
        weave_fault fault;
        const char *text;
    } CASES[] = {
        {{NULL, WEAVE_FIELD_STEPS, WEAVE_LIMIT_RANGE, 101, 0, 1, 100}, "steps is 101, must be 1 to 100"},
        {{NULL, WEAVE_FIELD_VERSION, WEAVE_LIMIT_RANGE, 2, 0, 1, 1}, "version is 2, must be 1"},
        {{NULL, WEAVE_FIELD_MODEL_ID, WEAVE_LIMIT_RANGE, UINT32_MAX, 0, 0, 0}, "model_id is 4294967295, must be 0"},
        {{NULL, WEAVE_FIELD_PAYLOAD_LEN, WEAVE_LIMIT_RANGE, 10, 0, 12, UINT32_MAX},
         "payload_len is 10, must be at least 12"},
        {{NULL, WEAVE_FIELD_PAYLOAD_LEN, WEAVE_LIMIT_RANGE, 6205, 0, 0, 6204},
         "payload_len is 6205, must be at most 6204"},
        {{NULL, WEAVE_FIELD_WIDTH, WEAVE_LIMIT_SIDE, 65, 0, 64, 2048},
         "width is 65, must be 64 to 2048 and a multiple of 64"},
        {{NULL, WEAVE_FIELD_CHANNELS, WEAVE_LIMIT_EITHER, 2, 0, 3, 4}, "channels is 2, must be 3 or 4"},
        {{NULL, WEAVE_FIELD_MAGIC, WEAVE_LIMIT_MAGIC, 0x0A200D00, 0, 0, 0},
         "magic is 0A 20 0D 00, must be 57 45 56 45"},
        {{NULL, WEAVE_FIELD_MSG_TYPE, WEAVE_LIMIT_TYPE, 0x1234, 0, 1, 1}, "msg_type is 0x1234, must be 0x0001"},
        {{NULL, WEAVE_FIELD_MSG_TYPE, WEAVE_LIMIT_TYPE, 1, 0, 2, 0xFF}, "msg_type is 0x0001, must be 0x0002 or 0x00FF"},
        {{NULL, WEAVE_FIELD_T5_OFFSET, WEAVE_LIMIT_WITHIN, 5, 6, 0, 9},
         "t5_offset is 5 and the length 6, must end within the 9 bytes of prompt_data"},
        {{NULL, WEAVE_FIELD_CLIP_L, WEAVE_LIMIT_UTF_8, 3, 0, 0, 0}, "clip_l is not UTF-8 at byte 3, must be UTF-8"},
        {{NULL, WEAVE_FIELD_CLIP_G, WEAVE_LIMIT_NO_NUL, 0, 0, 0, 0},
         "clip_g has the value 0 at byte 0, must have no byte 0"},
        {{NULL, WEAVE_FIELD_ERROR_CODE, WEAVE_LIMIT_CODE, 11, 0, 0, 0},
         "error_code is 11, must be a code of version 1"},
        {{NULL, WEAVE_FIELD_NONE, WEAVE_LIMIT_ROOM, 10, 0, 48, 0}, "the buffer has 10 bytes, must have at least 48"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        char text[256];
        const size_t len = weave_fault_text(&CASES[i].fault, text, sizeof text);
        check(len == strlen(text) && strcmp(text, CASES[i].text) == 0, "\"%s\" and not \"%s\"", text, CASES[i].text);
        for (size_t room = 1; room <= len; room++) { /* cut off where the room ends */
            char *small = allocate(room);
            const size_t cut = weave_fault_text(&CASES[i].fault, small, room);
            check(cut == room - 1 && memcmp(small, text, cut) == 0 && small[cut] == '\0', "\"%s\" cut at %zu", text,
                  cut);
            free(small);
        }
    }
}

static void test_fault_text_of_floats(void)
{
    static const struct {
        uint32_t bits;
        const char *text;
    } CASES[] = {
        {0x41A80000, "21.0"},
        {0x41A00001, "20.000001907"},
        {0xBF800000, "-1.0"},
        {0xC0200000, "-2.5"},
        {0x4B7FFFFF, "16777215.0"},
        {0xBA800000, "-0.000976562"}, /* 2^-10, and one less than the next below */
        {0x4B800000, "0x4B800000 (the bits of a float)"},
        {0xBA7FFFFF, "0xBA7FFFFF (the bits of a float)"},
        {0x80000001, "0x80000001 (the bits of a float)"},
        {0x7F7FFFFF, "0x7F7FFFFF (the bits of a float)"},
        {0x7F800000, "infinity"},
        {0xFF800000, "-infinity"},
        {0x7FC00000, "NaN"},
        {0xFF800001, "NaN"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        const weave_fault fault = {NULL, WEAVE_FIELD_CFG_SCALE, WEAVE_LIMIT_FLOAT, CASES[i].bits, 0, 0, 20};
        char text[256], expected[256];
        weave_fault_text(&fault, text, sizeof text);
        snprintf(expected, sizeof expected, "cfg_scale is %s, must be 0.0 to 20.0", CASES[i].text);
        check(strcmp(text, expected) == 0, "\"%s\" and not \"%s\"", text, expected);
    }
}

static void test_error_table(void)
{
    unsigned known = 0;
    for (uint32_t code = 0; code < 1000; code++) {
        const uint32_t status = weave_error_status(code);
        known += status == 400 || status == 500;
        check((status == 0) == (weave_error_name(code) == NULL), "code %" PRIu32 " has a status and a name, or none",
              code);
    }
    check(known == 16, "%u codes instead of 16", known);
    check(weave_error_status(0) == 0 && weave_error_status(UINT32_MAX) == 0, "NONE is not sent");
    check(weave_error_status(WEAVE_CODE_BUSY) == 500 && strcmp(weave_error_name(WEAVE_CODE_BUSY), "BUSY") == 0, "BUSY");
}

/* ---- Writers ---- */

static void check_refused_request(weave_request request, weave_field field)
{
    uint8_t frame[WEAVE_MAX_REQUEST_FRAME];
    weave_fault fault = {NULL, WEAVE_FIELD_NONE, WEAVE_LIMIT_RANGE, 0, 0, 0, 0};
    const size_t len = weave_write_request(&request, frame, sizeof frame, &fault);
    check(len == 0 && fault.field == field, "a request is refused for its %s, and not %s", weave_field_name(field),
          len == 0 ? weave_field_name(fault.field) : "written");
}

static void test_refused_requests(void)
{
    static const uint32_t SIDES[] = {0, 63, 65, 96, 2049, 2112, UINT32_MAX}, STEPS[] = {0, 101, UINT32_MAX};
    static const uint32_t LENGTHS[] = {0, 2049, UINT32_MAX}, BITS[] = {0x80000001, 0x41A00001, 0x7F800000, 0x7FC00000};
    weave_request request = good_request();
    request.model_id = 1;
    check_refused_request(request, WEAVE_FIELD_MODEL_ID);
    for (size_t i = 0; i < sizeof SIDES / sizeof SIDES[0]; i++) {
        request = good_request();
        request.height = SIDES[i];
        check_refused_request(request, WEAVE_FIELD_HEIGHT);
        request.width = SIDES[i];
        check_refused_request(request, WEAVE_FIELD_WIDTH);
    }
    for (size_t i = 0; i < sizeof STEPS / sizeof STEPS[0]; i++) {
        request = good_request();
        request.steps = STEPS[i];
        check_refused_request(request, WEAVE_FIELD_STEPS);
    }
    for (size_t i = 0; i < sizeof BITS / sizeof BITS[0]; i++) {
        request = good_request();
        memcpy(&request.cfg_scale, &BITS[i], sizeof BITS[i]);
        check_refused_request(request, WEAVE_FIELD_CFG_SCALE);
    }
    for (size_t i = 0; i < sizeof LENGTHS / sizeof LENGTHS[0]; i++) {
        request = good_request();
        request.t5.length = LENGTHS[i];
        check_refused_request(request, WEAVE_FIELD_T5_LENGTH);
        request.clip_g.length = LENGTHS[i];
        check_refused_request(request, WEAVE_FIELD_CLIP_G_LENGTH);
        request.clip_l.length = LENGTHS[i];
        check_refused_request(request, WEAVE_FIELD_CLIP_L_LENGTH);
    }
    request = good_request();
    request.clip_g = prompt("caf\xE9");
    check_refused_request(request, WEAVE_FIELD_CLIP_G);
    request = good_request();
    request.t5.text = (const uint8_t *)"a\0cat";
    check_refused_request(request, WEAVE_FIELD_T5);
}

static void test_minus_zero(void)
{
    uint8_t frame[WEAVE_MAX_REQUEST_FRAME];
    weave_fault fault;
    weave_request request = good_request();
    request.cfg_scale = -0.0f;
    const size_t len = weave_write_request(&request, frame, sizeof frame, &fault);
    check(len > 0 && memcmp(frame + 16 + 24, "\0\0\0", 4) == 0, "a cfg_scale of -0.0 is sent as 0.0");
}

/* No writer goes beyond the room that it is given. */
static void test_room(void)
{
    const weave_request request = good_request();
    const weave_response response = good_response();
    const size_t request_len = 16 + 60 + 5 + 5 + 4, head_len = 48, error_len = 16 + 18 + 5;
    for (size_t room = 0; room <= request_len; room++) {
        uint8_t *out = allocate(room);
        weave_fault fault;
        size_t len = weave_write_request(&request, out, room, &fault);
        check(len == (room < request_len ? 0 : request_len), "a request in room for %zu", room);
        check(len > 0 || (fault.limit == WEAVE_LIMIT_ROOM && fault.min == request_len), "says that there is no room");
        len = weave_write_response_head(&response, out, room, &fault);
        check(len == (room < head_len ? 0 : head_len), "a response's head in room for %zu", room);
        len = weave_write_error(1, WEAVE_CODE_BUSY, ascii("later"), out, room, &fault);
        check(len == (room < error_len ? 0 : error_len), "an error in room for %zu", room);
        free(out);
    }
}

static void check_refused_response(weave_response response, weave_field field)
{
    uint8_t head[WEAVE_RESPONSE_HEAD_LEN];
    weave_fault fault = {NULL, WEAVE_FIELD_NONE, WEAVE_LIMIT_RANGE, 0, 0, 0, 0};
    check(weave_write_response_head(&response, head, sizeof head, &fault) == 0 && fault.field == field,
          "a response is refused for its %s", weave_field_name(field));
}

static void test_refused_answers(void)
{
    weave_response response = good_response();
    response.image_width = 65;
    check_refused_response(response, WEAVE_FIELD_IMAGE_WIDTH);
    response = good_response();
    response.image_height = 0;
    check_refused_response(response, WEAVE_FIELD_IMAGE_HEIGHT);
    response = good_response();
    response.channels = 2;
    check_refused_response(response, WEAVE_FIELD_CHANNELS);

    uint8_t frame[WEAVE_MAX_ERROR_FRAME];
    weave_fault fault;
    size_t len;
    len = weave_write_error(1, WEAVE_CODE_INTERNAL, ascii("caf\xE9"), frame, sizeof frame, &fault);
    check(len == 0 && fault.field == WEAVE_FIELD_ERROR_MSG, "error_msg must be UTF-8");
    len = weave_write_error(1, 0, ascii("nothing"), frame, sizeof frame, &fault);
    check(len == 0 && fault.field == WEAVE_FIELD_ERROR_CODE, "NONE is not sent");
    len = weave_write_error(1, 11, ascii("new"), frame, sizeof frame, &fault);
    check(len == 0 && fault.field == WEAVE_FIELD_ERROR_CODE, "nor is a code without a status");
}

/* A server would rather say less than nothing: a long message is cut, and not within a character. */
static void test_long_messages(void)
{
    static const struct {
        const char *character;
        size_t kept; /* of a message made of that character alone */
    } CASES[] = {{"x", 255}, {"\xC3\xA9", 254}, {"\xE7\x8C\xAB", 255}, {"\xF0\x9F\x90\x88", 252}};
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        const size_t size = strlen(CASES[i].character);
        for (size_t len = 0; len <= 300; len += size) {
            uint8_t frame[WEAVE_MAX_ERROR_FRAME], *text = allocate(len);
            for (size_t at = 0; at < len; at += size) {
                memcpy(text + at, CASES[i].character, size);
            }
            weave_fault fault;
            const size_t kept = len > CASES[i].kept ? CASES[i].kept : len, expected = 16 + 18 + kept;
            check(weave_write_error(1, WEAVE_CODE_INTERNAL, (weave_bytes){text, len}, frame, sizeof frame, &fault) ==
                          expected &&
                      frame[11] == (18 + kept) % 256 && frame[33] == kept && memcmp(frame + 34, text, kept) == 0,
                  "a message of %zu bytes in characters of %zu", len, size);
            free(text);
        }
    }
}

/* ---- Showing ---- */

static void test_show(void)
{
    static const struct {
        const char *bytes;
        size_t len;
        const char *shown;
    } CASES[] = {
        {"", 0, ""},
        {"no", 2, "no"},
        {"a\0b", 3, "a\\u{00}b"},
        {"\x1B[2J\r\n\t\x7F", 8, "\\u{1B}[2J\\u{0D}\\u{0A}\\u{09}\\u{7F}"},
        {"\xC2\x9B\xC2\xA0", 4, "\\u{9B}\xC2\xA0"},
        {"\xE2\x80\xAE\xE2\x81\xA6\xD8\x9C", 8, "\\u{202E}\\u{2066}\\u{061C}"},
        {"\xE7\x8C\xAB\xF0\x9F\x90\x88", 7, "\xE7\x8C\xAB\xF0\x9F\x90\x88"},
        {"a\xFF\xFE\x62", 4, "a\xEF\xBF\xBD\xEF\xBF\xBD\x62"},
        {"\xED\xA0\x80", 3, "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"}, /* a surrogate has no valid beginning */
        {"caf\xC3", 4, "caf\xEF\xBF\xBD"},
        {"\xF0\x9F\x90\x7A", 4, "\xEF\xBF\xBD\x7A"}, /* what begins a character is replaced once */
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        for (size_t room = 9; room < 40; room++) {
            char all[128] = "", *part = allocate(room);
            weave_bytes rest = {(const uint8_t *)CASES[i].bytes, CASES[i].len};
            while (rest.len > 0 && strlen(all) < 64) {
                weave_show(&rest, part, room);
                strcat(all, part);
            }
            check(strcmp(all, CASES[i].shown) == 0, "\"%s\" and not \"%s\" is shown", all, CASES[i].shown);
            free(part);
        }
    }
}

static bool is_shown_as_it_is(const uint8_t *bytes, size_t len)
{
    char text[32];
    weave_bytes rest = {bytes, len};
    weave_show(&rest, text, sizeof text);
    return strstr(text, "\xEF\xBF\xBD") == NULL;
}

/* Of all sequences of a length, as many are UTF-8 as there are ways to put characters together. */
static void test_utf_8_exhaustively(void)
{
    enum { ONE = 0x80, TWO = 0x800 - 0x80, THREE = 0x10000 - 0x800 - 0x800 /* surrogates */ };
    uint32_t good = 0;
    for (uint32_t i = 0; i < 0x10000; i++) {
        const uint8_t bytes[] = {(uint8_t)(i >> 8), (uint8_t)i};
        good += is_shown_as_it_is(bytes, 2);
    }
    check(good == ONE * ONE + TWO, "%" PRIu32 " sequences of two bytes are UTF-8", good);
    good = 1; /* U+FFFD itself */
    for (uint32_t i = 0; i < 0x1000000; i++) {
        const uint8_t bytes[] = {(uint8_t)(i >> 16), (uint8_t)(i >> 8), (uint8_t)i};
        good += is_shown_as_it_is(bytes, 3);
    }
    check(good == ONE * ONE * ONE + 2 * ONE * TWO + THREE, "%" PRIu32 " sequences of three bytes are UTF-8", good);
    good = 0;
    for (uint32_t i = 0xE000; i < 0x10000; i++) { /* the last two of four are at the edges of what they may be */
        static const uint8_t EDGES[] = {0x00, 0x7F, 0x80, 0xBF, 0xC0, 0xFF};
        for (size_t k = 0; k < 36; k++) {
            const uint8_t bytes[] = {(uint8_t)(i >> 8), (uint8_t)i, EDGES[k / 6], EDGES[k % 6]};
            good += bytes[0] >= 0xF0 && is_shown_as_it_is(bytes, 4);
        }
    }
    /* 0x10 planes of 0x10 blocks, in each of which the last two bytes have two good edges. */
    check(good == 256 * 4, "%" PRIu32 " sequences of four bytes at the edges are UTF-8", good);
}

int main(void)
{
    make_crc_table();
    test_vectors();
    test_server_after_giving_up();
    test_client_after_breaking_off();
    test_nothing_to_read();
    test_message_room();
    test_no_prompt_in_refusals();
    test_fault_text();
    test_fault_text_of_floats();
    test_error_table();
    test_refused_requests();
    test_minus_zero();
    test_room();
    test_refused_answers();
    test_long_messages();
    test_show();
    test_utf_8_exhaustively();
    printf("%u passed, %u failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
