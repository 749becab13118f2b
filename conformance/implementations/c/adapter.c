/* Answers the questions of `weave-conform codec`, which conformance/ADAPTER.md describes: one line of JSON for each. */
#include "weave.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_LINE = 64 * 1024,
    MAX_HEX = MAX_LINE / 2, /* two digits a byte */
    MAX_STREAM = 17 * 1024 * 1024,
    MAX_MESSAGE = 65535
};

static char line[MAX_LINE + 3]; /* with its end, be it two characters, and a 0 */

/* Ends the program, since there is no answer that says that a question can't be understood. */
#ifdef __GNUC__
static void fail(const char *why, const char *what) __attribute__((noreturn));
#endif

static void fail(const char *why, const char *what)
{
    fprintf(stderr, "adapter: %s%s\n", why, what);
    exit(1);
}

/* ---- Reading JSON: a value is known by the place in `line` where it begins ---- */

static const char *skip_space(const char *at)
{
    return at + strspn(at, " \t\r\n");
}

static const char *expect(const char *at, char c)
{
    at = skip_space(at);
    if (*at != c) {
        char what[] = {c, '\0'};
        fail("the line is no question of JSON: it lacks ", what);
    }
    return at + 1;
}

enum { STRING_END = -1 };

/* Gives the byte or UTF-16 unit of a string that stands at *at, or STRING_END, and moves *at past it. */
static int next_char(const char **at)
{
    static const char NAMES[] = "\"\\/bfnrt", MEANINGS[] = "\"\\/\b\f\n\r\t";
    char c = *(*at)++;
    if (c == '"') {
        return STRING_END;
    }
    if (c == '\0') {
        fail("the line ends within a string", "");
    }
    if (c != '\\') {
        return (unsigned char)c;
    }
    c = *(*at)++;
    if (c == 'u' && strspn(*at, "0123456789abcdefABCDEF") >= 4) {
        char digits[5] = {(*at)[0], (*at)[1], (*at)[2], (*at)[3], '\0'};
        *at += 4;
        return (int)strtol(digits, NULL, 16);
    }
    const char *name = strchr(NAMES, c);
    if (c == '\0' || name == NULL) {
        fail("the line has a backslash before what can't follow one", "");
    }
    return MEANINGS[name - NAMES];
}

/* Whether the string at *at is `text`, which is ASCII. Moves *at past it. */
static bool is_string(const char **at, const char *text)
{
    bool same = true;
    *at = expect(*at, '"');
    for (int c = next_char(at); c != STRING_END; c = next_char(at)) {
        same = same && *text != '\0' && c == *text;
        if (same) {
            text++;
        }
    }
    return same && *text == '\0';
}

/* What is skipped is taken to be well-formed. */
static const char *skip_value(const char *at)
{
    int depth = 0;
    do {
        at = skip_space(at);
        if (*at == '"') {
            at++;
            while (next_char(&at) != STRING_END) {
            }
        } else if (*at == '{' || *at == '[') {
            depth++;
            at++;
        } else if (depth > 0 && strchr("]}", *at) != NULL && *at != '\0') {
            depth--;
            at++;
        } else if (depth > 0 && (*at == ',' || *at == ':')) {
            at++;
        } else {
            size_t len = strcspn(at, " \t\r\n\"{}[],:");
            if (len == 0) {
                fail("the line lacks a value", "");
            }
            at += len;
        }
    } while (depth > 0);
    return at;
}

/* The value of a member of the object at `object`, or NULL if it has none of that name. */
static const char *find(const char *object, const char *name)
{
    const char *at = expect(object, '{');
    if (*skip_space(at) == '}') {
        return NULL;
    }
    for (;;) {
        bool found = is_string(&at, name);
        at = skip_space(expect(at, ':'));
        if (found) {
            return at;
        }
        at = skip_space(skip_value(at));
        if (*at == '}') {
            return NULL;
        }
        at = expect(at, ',');
    }
}

static const char *need(const char *object, const char *name)
{
    const char *value = find(object, name);
    if (value == NULL) {
        fail("the question has no ", name);
    }
    return value;
}

/* Gives whether the number can be said in 32 bits. */
static bool get_u32(const char *at, uint32_t *value)
{
    char *end;
    double number = strtod(at, &end);
    if (end == at) {
        fail("a number is none", "");
    }
    if (!(number >= 0 && number <= UINT32_MAX)) {
        return false;
    }
    *value = (uint32_t)number;
    return *value == number;
}

/* The same for the string of a decimal number and 64 bits. */
static bool get_u64(const char *at, uint64_t *value)
{
    bool fits = true;
    *value = 0;
    at = expect(at, '"');
    for (int c = next_char(&at); c != STRING_END; c = next_char(&at)) {
        if (c < '0' || c > '9') {
            fail("a number of 64 bits has something else than decimal digits", "");
        }
        uint64_t digit = (uint64_t)(c - '0');
        fits = fits && *value <= (UINT64_MAX - digit) / 10;
        *value = *value * 10 + digit;
    }
    return fits;
}

static int digit_value(int c)
{
    const char *digits = "0123456789abcdef";
    const char *digit = c > 0 && c < 0x80 ? strchr(digits, c >= 'A' && c <= 'F' ? c - 'A' + 'a' : c) : NULL;
    if (digit == NULL) {
        fail("a string of bytes has something else than pairs of hexadecimal digits", "");
    }
    return (int)(digit - digits);
}

static size_t get_hex(const char *at, uint8_t *out, size_t room)
{
    size_t len = 0;
    at = expect(at, '"');
    for (int c = next_char(&at); c != STRING_END; c = next_char(&at)) {
        int high = digit_value(c), low = digit_value(next_char(&at));
        if (len == room) {
            fail("there are more bytes than ADAPTER.md allows", "");
        }
        out[len++] = (uint8_t)(high << 4 | low);
    }
    return len;
}

/* ---- Writing JSON ---- */

static void print_hex(weave_bytes bytes)
{
    for (size_t i = 0; i < bytes.len; i++) {
        putchar("0123456789ABCDEF"[bytes.at[i] >> 4]);
        putchar("0123456789ABCDEF"[bytes.at[i] & 15]);
    }
}

static void print_prompt(const char *name, const weave_prompt *prompt)
{
    printf(",\"%s\":{\"offset\":%" PRIu32 ",\"length\":%" PRIu32 ",\"hex\":\"", name, prompt->offset, prompt->length);
    print_hex((weave_bytes){prompt->text, prompt->length});
    printf("\"}");
}

static void print_request(const weave_request *request)
{
    uint32_t cfg_scale;
    memcpy(&cfg_scale, &request->cfg_scale, sizeof cfg_scale);
    printf("{\"request\":{\"request_id\":\"%" PRIu64 "\"", request->request_id);
    printf(",\"model_id\":%" PRIu32, request->model_id);
    printf(",\"width\":%" PRIu32 ",\"height\":%" PRIu32, request->width, request->height);
    printf(",\"steps\":%" PRIu32 ",\"cfg_scale\":\"%08" PRIX32 "\"", request->steps, cfg_scale);
    printf(",\"seed\":\"%" PRIu64 "\"", request->seed);
    print_prompt("clip_l", &request->clip_l);
    print_prompt("clip_g", &request->clip_g);
    print_prompt("t5", &request->t5);
    printf("}}");
}

static void print_answer(const weave_refusal *refusal)
{
    uint8_t frame[WEAVE_MAX_ERROR_FRAME];
    printf("{\"answer\":{\"field\":\"%s\",\"hex\":\"", weave_field_name(refusal->fault.field));
    print_hex((weave_bytes){frame, weave_write_refusal(refusal, frame)});
    printf("\"}}");
}

static void print_response(const weave_response *response, uint32_t crc, uint32_t trailing)
{
    printf("{\"response\":{\"request_id\":\"%" PRIu64 "\",\"status\":%" PRIu32, response->request_id, response->status);
    printf(",\"generation_time_ms\":%" PRIu32, response->generation_time_ms);
    printf(",\"image_width\":%" PRIu32 ",\"image_height\":%" PRIu32, response->image_width, response->image_height);
    printf(",\"channels\":%" PRIu32 ",\"image_data_len\":%" PRIu32, response->channels, response->image_data_len);
    printf(",\"crc32\":\"%08" PRIX32 "\",\"trailing\":%" PRIu32 "}}", crc, trailing);
}

static void print_error(const weave_error *error, uint32_t trailing)
{
    printf("{\"error\":{\"request_id\":\"%" PRIu64 "\",\"status\":%" PRIu32, error->request_id, error->status);
    printf(",\"error_code\":%" PRIu32 ",\"hex\":\"", error->error_code);
    print_hex(error->error_msg);
    printf("\",\"shown\":\"");
    weave_bytes rest = error->error_msg;
    while (rest.len > 0) {
        char text[256];
        size_t len = weave_show(&rest, text, sizeof text);
        print_hex((weave_bytes){(const uint8_t *)text, len});
    }
    printf("\",\"trailing\":%" PRIu32 "}}", trailing);
}

/* ---- What a receiver makes of bytes ---- */

static uint32_t crc_table[256];

static void make_crc_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
        }
        crc_table[i] = crc;
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

static uint8_t stream[MAX_STREAM];

/* Puts the pieces together and gives how many bytes they are. */
static size_t get_stream(const char *at)
{
    size_t len = 0;
    at = skip_space(expect(at, '['));
    while (*at != ']') {
        uint32_t times = 1;
        const char *times_at = find(at, "times");
        uint8_t *piece = stream + len;
        const size_t size = get_hex(need(at, "hex"), piece, MAX_STREAM - len);
        if ((times_at != NULL && !get_u32(times_at, &times)) || (uint64_t)size * times > MAX_STREAM - len) {
            fail("the stream is longer than ADAPTER.md allows", "");
        }
        const size_t all = size * times;
        for (size_t done = size; done < all;) { /* what is there already is doubled */
            const size_t more = done < all - done ? done : all - done;
            memcpy(piece + done, piece, more);
            done += more;
        }
        len += all;
        at = skip_space(skip_value(at));
        if (*at != ']') {
            at = skip_space(expect(at, ','));
        }
    }
    return len;
}

static void print_end(weave_state state)
{
    const char *name = state == WEAVE_BETWEEN_FRAMES   ? "between-frames"
                       : state == WEAVE_INSIDE_A_FRAME ? "inside-a-frame"
                                                       : "closed";
    printf("],\"end\":\"%s\"}\n", name);
}

/* Cuts the next `cut` bytes off the front of `rest`. */
static weave_bytes next_cut(weave_bytes *rest, size_t cut)
{
    const weave_bytes in = {rest->at, cut < rest->len ? cut : rest->len};
    rest->at += in.len;
    rest->len -= in.len;
    return in;
}

static void read_as_server(weave_bytes rest, size_t cut)
{
    static uint8_t payload[WEAVE_MAX_REQUEST_PAYLOAD];
    weave_request_reader reader;
    weave_request_reader_init(&reader, payload);
    const char *comma = "";
    while (rest.len > 0 && weave_request_reader_state(&reader) != WEAVE_CLOSED) {
        weave_bytes in = next_cut(&rest, cut);
        weave_event event;
        do {
            event = weave_read_request(&reader, &in);
            if (event != WEAVE_MORE) {
                printf("%s", comma);
                comma = ",";
                if (event == WEAVE_REQUEST) {
                    print_request(&reader.request);
                } else {
                    print_answer(&reader.refusal);
                }
            }
        } while (event == WEAVE_REQUEST || event == WEAVE_REFUSED);
    }
    print_end(weave_request_reader_state(&reader));
}

static void read_as_client(weave_bytes rest, size_t cut)
{
    static uint8_t message[MAX_MESSAGE];
    weave_answer_reader reader;
    weave_answer_reader_init(&reader, message, sizeof message);
    const char *comma = "";
    uint32_t crc = 0;
    while (rest.len > 0 && weave_answer_reader_state(&reader) != WEAVE_CLOSED) {
        weave_bytes in = next_cut(&rest, cut);
        weave_event event;
        do {
            event = weave_read_answer(&reader, &in);
            if (event == WEAVE_RESPONSE) {
                crc = 0;
            } else if (event == WEAVE_PIXELS) {
                crc = crc_more(crc, reader.pixels);
            } else if (event != WEAVE_MORE) {
                printf("%s", comma);
                comma = ",";
                if (event == WEAVE_RESPONSE_END) {
                    print_response(&reader.response, crc, reader.trailing);
                } else if (event == WEAVE_ERROR) {
                    print_error(&reader.error, reader.trailing);
                } else {
                    printf("{\"close\":{\"because\":\"%s\"}}", reader.fault.requirement);
                }
            }
        } while (event != WEAVE_MORE && event != WEAVE_BROKEN);
    }
    print_end(weave_answer_reader_state(&reader));
}

static void answer_read(const char *receiver)
{
    const char *again = receiver;
    const bool server = is_string(&receiver, "server");
    if (!server && !is_string(&again, "client")) {
        printf("{\"unsupported\":\"a receiver that is neither server nor client\"}\n");
        return;
    }
    uint32_t cut;
    if (!get_u32(need(line, "cut"), &cut) || cut == 0) {
        fail("cut must be at least 1", "");
    }
    const weave_bytes bytes = {stream, get_stream(need(line, "bytes"))};
    printf("{\"frames\":[");
    (server ? read_as_server : read_as_client)(bytes, cut);
}

/* ---- What a sender sends ---- */

static void print_refused(const char *field)
{
    printf("{\"refused\":\"%s\"}\n", field);
}

/* Prints what a writer has given: a length, or 0 and a fault. */
static void print_written(const uint8_t *frame, size_t len, const weave_fault *fault)
{
    if (len == 0) {
        print_refused(weave_field_name(fault->field));
        return;
    }
    printf("{\"hex\":\"");
    print_hex((weave_bytes){frame, len});
    printf("\"}\n");
}

/* A value that its field has no place for is refused here already. */
static bool short_number(const char *name, uint32_t *value)
{
    if (get_u32(need(line, name), value)) {
        return true;
    }
    print_refused(name);
    return false;
}

static bool long_number(const char *name, uint64_t *value)
{
    if (get_u64(need(line, name), value)) {
        return true;
    }
    print_refused(name);
    return false;
}

static weave_prompt prompt(const char *name, uint8_t *room)
{
    const size_t len = get_hex(need(line, name), room, MAX_HEX);
    return (weave_prompt){0, (uint32_t)len, room};
}

static void write_request(void)
{
    static uint8_t texts[3][MAX_HEX];
    weave_request request = {0};
    if (!long_number("request_id", &request.request_id) || !short_number("width", &request.width) ||
        !short_number("height", &request.height) || !short_number("steps", &request.steps) ||
        !long_number("seed", &request.seed)) {
        return;
    }
    uint8_t bits[4];
    if (get_hex(need(line, "cfg_scale"), bits, sizeof bits) != sizeof bits) {
        fail("cfg_scale must have 8 digits", "");
    }
    const uint32_t cfg_scale = (uint32_t)bits[0] << 24 | (uint32_t)bits[1] << 16 | (uint32_t)bits[2] << 8 | bits[3];
    memcpy(&request.cfg_scale, &cfg_scale, sizeof cfg_scale);
    request.clip_l = prompt("clip_l", texts[0]);
    request.clip_g = prompt("clip_g", texts[1]);
    request.t5 = prompt("t5", texts[2]);
    uint8_t frame[WEAVE_MAX_REQUEST_FRAME];
    weave_fault fault;
    print_written(frame, weave_write_request(&request, frame, sizeof frame, &fault), &fault);
}

static void write_response_head(void)
{
    weave_response response = {0};
    if (!long_number("request_id", &response.request_id) ||
        !short_number("generation_time_ms", &response.generation_time_ms) ||
        !short_number("image_width", &response.image_width) || !short_number("image_height", &response.image_height) ||
        !short_number("channels", &response.channels)) {
        return;
    }
    uint8_t head[WEAVE_RESPONSE_HEAD_LEN];
    weave_fault fault;
    print_written(head, weave_write_response_head(&response, head, sizeof head, &fault), &fault);
}

static void write_error(void)
{
    static uint8_t message[MAX_HEX];
    uint64_t request_id;
    uint32_t error_code;
    if (!long_number("request_id", &request_id) || !short_number("error_code", &error_code)) {
        return;
    }
    const weave_bytes error_msg = {message, get_hex(need(line, "error_msg"), message, sizeof message)};
    uint8_t frame[WEAVE_MAX_ERROR_FRAME];
    weave_fault fault;
    print_written(frame, weave_write_error(request_id, error_code, error_msg, frame, sizeof frame, &fault), &fault);
}

static void answer_write(const char *message)
{
    static const struct {
        const char *name;
        void (*write)(void);
    } MESSAGES[] = {{"request", write_request}, {"response-head", write_response_head}, {"error", write_error}};
    for (size_t i = 0; i < sizeof MESSAGES / sizeof MESSAGES[0]; i++) {
        const char *at = message;
        if (is_string(&at, MESSAGES[i].name)) {
            MESSAGES[i].write();
            return;
        }
    }
    printf("{\"unsupported\":\"a message that is neither request, response-head nor error\"}\n");
}

int main(void)
{
    make_crc_table();
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (strchr(line, '\n') == NULL && !feof(stdin)) {
            fail("a line is longer than 64 KiB, or has a byte 0", "");
        }
        const char *read = find(line, "read"), *write = find(line, "write");
        if (read != NULL) {
            answer_read(read);
        } else if (write != NULL) {
            answer_write(write);
        } else {
            printf("{\"unsupported\":\"a question that is neither read nor write\"}\n");
        }
        if (fflush(stdout) != 0) {
            fail("the answer can't be written", "");
        }
    }
    return ferror(stdin) ? 1 : 0;
}
