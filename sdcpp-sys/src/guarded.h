// The boundary that lets no exception out.

#ifndef WEAVE_SDCPP_GUARDED_H
#define WEAVE_SDCPP_GUARDED_H

#include <cstddef>
#include <cstring>
#include <exception>
#include <new>

#include "shim.h"

namespace {

// Copies a text into the caller's buffer, as much of it as fits.
void tell(char* message, size_t message_size, const char* text) noexcept {
    if (message == nullptr || message_size == 0) {
        return;
    }
    size_t length = std::strlen(text);
    if (length >= message_size) {
        length = message_size - 1;
        // 10xxxxxx continues a character that must not be cut.
        while (length > 0 && (static_cast<unsigned char>(text[length]) & 0xC0) == 0x80) {
            --length;
        }
    }
    std::memcpy(message, text, length);
    message[length] = '\0';
}

// The boundary: runs `call`, which returns a status, and turns whatever it throws into one.
template <typename Call>
sdcpp_status guarded(char* message, size_t message_size, Call call) noexcept {
    tell(message, message_size, "");
    try {
        return call();
    } catch (const std::bad_alloc&) {
        tell(message, message_size, "out of memory");
        return SDCPP_OUT_OF_MEMORY;
    } catch (const std::exception& thrown) {
        tell(message, message_size, thrown.what());
        return SDCPP_EXCEPTION;
    } catch (...) {
        tell(message, message_size, "an exception that is no std::exception");
        return SDCPP_EXCEPTION;
    }
}

}  // namespace

#endif
