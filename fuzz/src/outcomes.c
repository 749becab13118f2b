/* What the C implementation makes of a stream, as numbers in a row: see `Outcome::numbers` in lib.rs. */

#include <string.h>

#include "weave.h"

typedef struct numbers {
    uint64_t *at;
    size_t len, room;
} numbers;

static void put(numbers *out, uint64_t number)
{
    if (out->len < out->room) {
        out->at[out->len] = number;
    }
    out->len++;
}

/* FNV-1a, going on from `hash`. */
static uint64_t hashed(uint64_t hash, const uint8_t *at, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        hash = (hash ^ at[i]) * UINT64_C(0x100000001b3);
    }
    return hash;
}

static const uint64_t START = UINT64_C(0xcbf29ce484222325);

static void put_prompt(numbers *out, const weave_prompt *prompt)
{
    put(out, prompt->offset);
    put(out, prompt->length);
    put(out, hashed(START, prompt->text, prompt->length));
}

static void put_request(numbers *out, const weave_request *request)
{
    uint32_t bits;
    memcpy(&bits, &request->cfg_scale, sizeof bits);
    put(out, 1);
    put(out, request->request_id);
    put(out, request->width);
    put(out, request->height);
    put(out, request->steps);
    put(out, bits);
    put(out, request->seed);
    put_prompt(out, &request->clip_l);
    put_prompt(out, &request->clip_g);
    put_prompt(out, &request->t5);
}

static void put_state(numbers *out, weave_state state)
{
    put(out, 100 + (uint64_t)state);
}

/* Reads `in` as a server, `cut` bytes at a time. Gives how many numbers there are; `room` of them are in `out`. */
size_t weave_c_server(const uint8_t *in, size_t len, size_t cut, uint64_t *at, size_t room)
{
    static uint8_t payload[WEAVE_MAX_REQUEST_PAYLOAD];
    numbers out = {at, 0, room};
    weave_request_reader reader;
    weave_request_reader_init(&reader, payload);
    while (len > 0 && weave_request_reader_state(&reader) != WEAVE_CLOSED) {
        size_t now = len < cut ? len : cut;
        weave_bytes piece = {in, now};
        weave_event event;
        while ((event = weave_read_request(&reader, &piece)) != WEAVE_MORE) {
            if (event == WEAVE_REQUEST) {
                put_request(&out, &reader.request);
            } else {
                put(&out, 2);
                put(&out, reader.refusal.request_id);
                put(&out, (uint64_t)reader.refusal.error_code);
            }
            if (event == WEAVE_GIVEN_UP) {
                break;
            }
        }
        in += now;
        len -= now;
    }
    put_state(&out, weave_request_reader_state(&reader));
    return out.len;
}

/* The same as a client. */
size_t weave_c_client(const uint8_t *in, size_t len, size_t cut, uint64_t *at, size_t room)
{
    static uint8_t message[65535];
    numbers out = {at, 0, room};
    weave_answer_reader reader;
    uint64_t pixels = START;
    weave_answer_reader_init(&reader, message, sizeof message);
    while (len > 0 && weave_answer_reader_state(&reader) != WEAVE_CLOSED) {
        size_t now = len < cut ? len : cut;
        weave_bytes piece = {in, now};
        weave_event event;
        while ((event = weave_read_answer(&reader, &piece)) != WEAVE_MORE) {
            if (event == WEAVE_RESPONSE) {
                pixels = START;
            } else if (event == WEAVE_PIXELS) {
                pixels = hashed(pixels, reader.pixels.at, reader.pixels.len);
            } else if (event == WEAVE_RESPONSE_END) {
                put(&out, 3);
                put(&out, reader.response.request_id);
                put(&out, reader.response.generation_time_ms);
                put(&out, reader.response.image_width);
                put(&out, reader.response.image_height);
                put(&out, reader.response.channels);
                put(&out, pixels);
                put(&out, reader.trailing);
            } else if (event == WEAVE_ERROR) {
                put(&out, 4);
                put(&out, reader.error.request_id);
                put(&out, reader.error.status);
                put(&out, reader.error.error_code);
                put(&out, hashed(START, reader.error.error_msg.at, reader.error.error_msg.len));
                put(&out, reader.trailing);
            } else { /* WEAVE_BROKEN */
                put(&out, 5);
                break;
            }
        }
        in += now;
        len -= now;
    }
    put_state(&out, weave_answer_reader_state(&reader));
    return out.len;
}
