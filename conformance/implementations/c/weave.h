/*
 * Weave, version 1: reading and writing its frames, for a server and for a client.
 *
 * Nothing is allocated and no function of the C library is called, so that it can be compiled for a machine that has
 * none. All memory is the caller's. A reader takes a stream in whatever pieces it comes (W1-TRN-001), looks at each
 * byte once, and says what it has found:
 *
 *     weave_bytes in = {received, received_len};
 *     weave_event event;
 *     while ((event = weave_read_request(&reader, &in)) != WEAVE_MORE) {
 *         switch (event) ...; leave the loop after WEAVE_GIVEN_UP
 *     }
 *
 * A reader never looks at more than `in`, and moves `in` past what it has taken. What it has found lies in its public
 * members until its next call. Requirements such as W1-HDR-001 are those of spec/weave-v1.md.
 */
#ifndef WEAVE_H
#define WEAVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Sizes are in bytes; those of a frame include its header. */
#define WEAVE_HEADER_LEN UINT32_C(16)
#define WEAVE_MAX_REQUEST_PAYLOAD UINT32_C(6204)
#define WEAVE_MAX_SKIPPED_PAYLOAD UINT32_C(10485760)
#define WEAVE_MAX_RESPONSE_PAYLOAD UINT32_C(16777248)
#define WEAVE_MAX_PROMPT_LEN UINT32_C(2048)
#define WEAVE_MAX_ERROR_MSG UINT32_C(255)
#define WEAVE_MAX_REQUEST_FRAME (WEAVE_HEADER_LEN + WEAVE_MAX_REQUEST_PAYLOAD)
#define WEAVE_RESPONSE_HEAD_LEN (WEAVE_HEADER_LEN + UINT32_C(32)) /* all of a response before its pixels */
#define WEAVE_MAX_ERROR_FRAME (WEAVE_HEADER_LEN + UINT32_C(18) + WEAVE_MAX_ERROR_MSG)

/* Bytes that belong to somebody else. `at` may be NULL if `len` is 0. */
typedef struct weave_bytes {
    const uint8_t *at;
    size_t len;
} weave_bytes;

/* The error_codes of section 6. A client may meet others (W1-ERR-006). */
typedef enum weave_error_code {
    WEAVE_CODE_INVALID_MAGIC = 1,
    WEAVE_CODE_UNSUPPORTED_VERSION = 2,
    WEAVE_CODE_INVALID_MODEL_ID = 3,
    WEAVE_CODE_INVALID_PROMPT = 4,
    WEAVE_CODE_INVALID_DIMENSIONS = 5,
    WEAVE_CODE_INVALID_STEPS = 6,
    WEAVE_CODE_INVALID_CFG = 7,
    WEAVE_CODE_OUT_OF_MEMORY = 8,
    WEAVE_CODE_GPU_ERROR = 9,
    WEAVE_CODE_TIMEOUT = 10,
    WEAVE_CODE_MALFORMED = 20,
    WEAVE_CODE_TOO_LARGE = 21,
    WEAVE_CODE_UNSUPPORTED_TYPE = 22,
    WEAVE_CODE_BUSY = 23,
    WEAVE_CODE_SHUTTING_DOWN = 24,
    WEAVE_CODE_INTERNAL = 99
} weave_error_code;

/* The status of a code, 400 or 500 (W1-ERR-002), and its name; 0 and NULL for a code that is not in the table. */
uint32_t weave_error_status(uint32_t error_code);
const char *weave_error_name(uint32_t error_code);

/* ---- What is wrong ---- */

typedef enum weave_field {
    WEAVE_FIELD_NONE,
    WEAVE_FIELD_MAGIC,
    WEAVE_FIELD_VERSION,
    WEAVE_FIELD_MSG_TYPE,
    WEAVE_FIELD_PAYLOAD_LEN,
    WEAVE_FIELD_MODEL_ID,
    WEAVE_FIELD_WIDTH,
    WEAVE_FIELD_HEIGHT,
    WEAVE_FIELD_STEPS,
    WEAVE_FIELD_CFG_SCALE,
    WEAVE_FIELD_CLIP_L_OFFSET,
    WEAVE_FIELD_CLIP_L_LENGTH,
    WEAVE_FIELD_CLIP_L, /* the text itself */
    WEAVE_FIELD_CLIP_G_OFFSET,
    WEAVE_FIELD_CLIP_G_LENGTH,
    WEAVE_FIELD_CLIP_G,
    WEAVE_FIELD_T5_OFFSET,
    WEAVE_FIELD_T5_LENGTH,
    WEAVE_FIELD_T5,
    WEAVE_FIELD_STATUS,
    WEAVE_FIELD_IMAGE_WIDTH,
    WEAVE_FIELD_IMAGE_HEIGHT,
    WEAVE_FIELD_CHANNELS,
    WEAVE_FIELD_IMAGE_DATA_LEN,
    WEAVE_FIELD_ERROR_CODE,
    WEAVE_FIELD_ERROR_MSG
} weave_field;

/* The field's name in the protocol's text; "" for WEAVE_FIELD_NONE. */
const char *weave_field_name(weave_field field);

/* What a field has to be, and which members of a weave_fault say so. */
typedef enum weave_limit {
    WEAVE_LIMIT_RANGE,  /* value must be from min to max */
    WEAVE_LIMIT_SIDE,   /* and a multiple of 64 */
    WEAVE_LIMIT_EITHER, /* value must be min or max */
    WEAVE_LIMIT_MAGIC,  /* value has the four bytes that stand in place of the magic */
    WEAVE_LIMIT_TYPE,   /* value must be min or max, and is shown in hexadecimal */
    WEAVE_LIMIT_FLOAT,  /* value has the bits of a binary32, which must be from min to max, whole numbers */
    WEAVE_LIMIT_WITHIN, /* value (an offset) and length make a range, which must end within max bytes */
    WEAVE_LIMIT_UTF_8,  /* the byte at value begins what is not UTF-8 */
    WEAVE_LIMIT_NO_NUL, /* the byte at value is 0 */
    WEAVE_LIMIT_CODE,   /* value must be an error_code of the table */
    WEAVE_LIMIT_ROOM    /* the caller's buffer has value bytes and needs min */
} weave_limit;

/* A value that is not allowed. It holds numbers only: no part of a prompt can get into a message (W1-ERR-005). */
typedef struct weave_fault {
    const char *requirement; /* its id, such as "W1-REQ-001"; NULL where it is a table of the text without an id */
    weave_field field;
    weave_limit limit;
    uint32_t value, length, min, max;
} weave_fault;

/*
 * Writes the field, its value and what is allowed (W1-ERR-004) as a string that ends with a 0, such as "steps is 0,
 * must be 1 to 100", cut off if it does not fit into `room` bytes, which must be at least 1. Gives its length, at
 * most 255.
 */
size_t weave_fault_text(const weave_fault *fault, char *out, size_t room);

/* ---- Messages ---- */

/* A prompt is UTF-8 of 1 to 2048 bytes, none of them 0. */
typedef struct weave_prompt {
    uint32_t offset; /* where it lay in prompt_data; of no concern to a writer */
    uint32_t length;
    const uint8_t *text; /* no 0 follows it */
} weave_prompt;

typedef struct weave_request {
    uint64_t request_id;
    uint32_t model_id;             /* 0 */
    uint32_t width, height;        /* pixels: 64 to 2048, multiples of 64 */
    uint32_t steps;                /* 1 to 100 */
    float cfg_scale;               /* 0.0 to 20.0; never -0.0 when it was read */
    uint64_t seed;                 /* 0 leaves the choice to the server, which must draw one (W1-REQ-009) */
    weave_prompt clip_l, clip_g, t5; /* may share bytes; an engine with one prompt takes clip_l (W1-REQ-008) */
} weave_request;

/* All of a response but the pixels. */
typedef struct weave_response {
    uint64_t request_id;
    uint32_t status;                    /* 200; a writer writes that itself */
    uint32_t generation_time_ms;
    uint32_t image_width, image_height; /* pixels: 64 to 2048, multiples of 64 */
    uint32_t channels;                  /* 3 for RGB, 4 for RGBA */
    uint32_t image_data_len;            /* the product of the three; a writer computes it itself */
} weave_response;

/* An error as a client reads it. Its text is hostile: show it by way of weave_show (W1-ERR-010). */
typedef struct weave_error {
    uint64_t request_id;    /* 0 if the server could not tell */
    uint32_t status;        /* 400 or 500 */
    uint32_t error_code;    /* may be none of weave_error_code (W1-ERR-006) */
    uint32_t error_msg_len; /* as it was sent, at most 65,535 */
    weave_bytes error_msg;  /* as much of it as the reader's buffer holds */
} weave_error;

/* Why a server refuses a frame. weave_write_refusal makes the answer of it. */
typedef struct weave_refusal {
    uint64_t request_id;         /* W1-ERR-001: the frame's if it has one, otherwise 0 */
    weave_error_code error_code;
    int step;                    /* the row of the table in section 7, 1 to 15 */
    weave_fault fault;
} weave_refusal;

/* ---- Readers ---- */

typedef enum weave_event {
    WEAVE_MORE,         /* all bytes are taken; come back with further ones */
    WEAVE_REQUEST,      /* server: serve `request` */
    WEAVE_REFUSED,      /* server: answer with `refusal` and go on (W1-CON-005) */
    WEAVE_GIVEN_UP,     /* server: answer with `refusal` and close; nothing is read any more */
    WEAVE_RESPONSE,     /* client: `response` has come, its pixels follow */
    WEAVE_PIXELS,       /* client: `pixels` are image_data from byte `pixels_at` on */
    WEAVE_RESPONSE_END, /* client: the response is whole */
    WEAVE_ERROR,        /* client: `error` is whole */
    WEAVE_BROKEN        /* client: `fault` has come, close the connection; nothing is read any more */
} weave_event;

/* How a stream stands after what was read of it. */
typedef enum weave_state {
    WEAVE_BETWEEN_FRAMES,
    WEAVE_INSIDE_A_FRAME, /* if the peer is gone, the frame is to be dropped (W1-FRM-009) */
    WEAVE_CLOSED          /* after WEAVE_GIVEN_UP or WEAVE_BROKEN, which every further call repeats */
} weave_state;

/* A server's end of one connection. */
typedef struct weave_request_reader {
    weave_request request; /* its prompts lie in the buffer that the reader was given */
    weave_refusal refusal;
    /* The rest is the reader's own. */
    uint8_t *payload;
    uint8_t header[WEAVE_HEADER_LEN];
    uint32_t header_have, payload_len, payload_have, payload_kept;
    bool closed;
} weave_request_reader;

/* `payload` must live as long as the reader. What is longer than the longest request is skipped, not stored. */
void weave_request_reader_init(weave_request_reader *reader, uint8_t payload[WEAVE_MAX_REQUEST_PAYLOAD]);
weave_event weave_read_request(weave_request_reader *reader, weave_bytes *in);
weave_state weave_request_reader_state(const weave_request_reader *reader);

/* A client's end of one connection. */
typedef struct weave_answer_reader {
    weave_response response; /* checked, from WEAVE_RESPONSE to WEAVE_RESPONSE_END */
    weave_bytes pixels;      /* they lie in what the caller has passed as `in` */
    uint32_t pixels_at;
    weave_error error;
    uint32_t trailing;       /* bytes that the frame had after what this version knows; with the two ends */
    weave_fault fault;
    /* The rest is the reader's own. */
    uint8_t *message;
    size_t message_room;
    uint8_t head[WEAVE_RESPONSE_HEAD_LEN];
    uint32_t head_have, head_len, body_len, body_have, trailing_have;
    bool is_error, told, closed;
} weave_answer_reader;

/*
 * `message` takes the text of errors and must live as long as the reader. What it has no room for is lost: 255 bytes
 * hold all that a server of this version sends, 65,535 all that a client has to accept. NULL is right for 0 bytes.
 */
void weave_answer_reader_init(weave_answer_reader *reader, uint8_t *message, size_t message_room);
weave_event weave_read_answer(weave_answer_reader *reader, weave_bytes *in);
weave_state weave_answer_reader_state(const weave_answer_reader *reader);

/* ---- Writers ---- */

/*
 * These give the number of bytes that they have written to `out`, which has `room` bytes, or 0 if they refuse, with the
 * reason in `*fault`. Room for WEAVE_MAX_REQUEST_FRAME, WEAVE_RESPONSE_HEAD_LEN and WEAVE_MAX_ERROR_FRAME always does.
 */
size_t weave_write_request(const weave_request *request, uint8_t *out, size_t room, weave_fault *fault);

/* The first 48 bytes of a response. Its image_width * image_height * channels pixels are to follow at once. */
size_t weave_write_response_head(const weave_response *response, uint8_t *out, size_t room, weave_fault *fault);

/*
 * error_msg is UTF-8 without any part of a prompt (W1-ERR-005), and is sent as far as 255 bytes hold whole characters
 * of it (W1-ERR-003). An error_code that is not in the table is refused: the text has no status for it (W1-ERR-002).
 */
size_t weave_write_error(uint64_t request_id, uint32_t error_code, weave_bytes error_msg, uint8_t *out, size_t room,
                         weave_fault *fault);

/* The answer to a frame that a reader has refused; its text is that of weave_fault_text. */
size_t weave_write_refusal(const weave_refusal *refusal, uint8_t out[WEAVE_MAX_ERROR_FRAME]);

/* ---- Showing ---- */

/*
 * Makes text from a peer fit for a terminal (W1-ERR-010): what is not UTF-8 becomes U+FFFD; control characters, and the
 * invisible ones that change a line's direction, become such as \u{1B}. Takes as much from the front of `text` as fits
 * into `room` bytes, which must be at least 9, ends it with a 0 and gives its length: call it until `text` is empty.
 */
size_t weave_show(weave_bytes *text, char *out, size_t room);

#ifdef __cplusplus
}
#endif

#endif
