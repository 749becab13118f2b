/// The C++ layer between stable-diffusion.cpp and Rust.
///
/// stable-diffusion.cpp throws through its C API, and an exception that reaches Rust ends the
/// process. Every function here catches all of them and returns a status instead. A function that
/// can fail also gets a buffer, which it fills with what is known about the failure: UTF-8, ended
/// by a NUL, cut between two characters where the buffer is too small. On success the buffer is
/// left empty. It may be null if its length is 0.
///
/// What calls `abort`, such as a failed assertion of ggml, still ends the process.

#ifndef WEAVE_SDCPP_SHIM_H
#define WEAVE_SDCPP_SHIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "stable-diffusion.h"

#ifdef __cplusplus
extern "C" {
#endif

/// How a call ended. Later versions may add values.
typedef enum sdcpp_status {
    /// It did what it should.
    SDCPP_OK = 0,
    /// The engine gave nothing back and no reason; what it knows, it has logged.
    SDCPP_NO_RESULT = 1,
    /// The engine ran out of memory on the host.
    SDCPP_OUT_OF_MEMORY = 2,
    /// The engine threw something else.
    SDCPP_EXCEPTION = 3,
    /// The engine or this layer can't do what was asked for; the engine was not called.
    SDCPP_UNSUPPORTED = 4,
    /// A pointer that must not be null is; the engine was not called.
    SDCPP_NULL_ARGUMENT = 5,
    /// The progress callback wanted it to end. The context can be used again.
    SDCPP_CANCELLED = 6
} sdcpp_status;

/// What the engine is busy with.
typedef enum sdcpp_phase {
    /// Reads weights, when a context is made or when they are needed for the first time.
    SDCPP_PHASE_LOAD = 1,
    /// Turns the prompt into what the model takes.
    SDCPP_PHASE_ENCODE = 2,
    /// Draws, step by step.
    SDCPP_PHASE_SAMPLE = 3,
    /// Turns what was drawn into pixels, at once or tile by tile.
    SDCPP_PHASE_DECODE = 4
} sdcpp_phase;

/// Hears how far the engine is: `step` of `steps` are done, of tensors, steps or tiles; both are 0 where
/// the engine does not count. Returns whether it is to go on. Called by the thread that called the engine.
typedef bool (*sdcpp_progress_cb)(sdcpp_phase phase, int step, int steps, void* data);

/// What `sdcpp_throw` throws.
typedef enum sdcpp_thrown {
    SDCPP_THROW_RUNTIME_ERROR = 0,
    SDCPP_THROW_BAD_ALLOC = 1,
    SDCPP_THROW_INT = 2
} sdcpp_thrown;

/// A device that the engine computes on.
typedef struct sdcpp_device {
    /// As the engine calls it, such as `CUDA0`.
    char name[64];
    /// As its maker calls it.
    char description[128];
    /// What of the engine computes on it, such as `CUDA`.
    char back_end[32];
    /// It is a processor's own cores, not a GPU.
    bool is_cpu;
} sdcpp_device;

/// Tells which device a context computes on whose parameters name none: the first GPU, else the CPU.
/// `SDCPP_UNSUPPORTED` with an engine that was built elsewhere as a shared library, which need not
/// show it. On failure `*device` is all zeros.
///
/// Asking makes the engine look for its devices. What it finds goes to its log if a context was made
/// before, and to standard error if not. Memory is not asked for: on a GPU that is full, ggml aborts.
sdcpp_status sdcpp_default_device(sdcpp_device* device, char* message, size_t message_size);

/// Sets who hears the engine's log and how far it is, for the whole process; either may be null. To be
/// called before a context is made, in place of upstream's functions: the log tells phases apart.
void sdcpp_set_callbacks(sd_log_cb_t log, sdcpp_progress_cb progress, void* data);
/// Tells which device has this number, counted from 0, as `sdcpp_default_device` tells of the one that
/// it chooses. `SDCPP_NO_RESULT` from the number on at which there are no more.
sdcpp_status sdcpp_device_at(size_t index, sdcpp_device* device, char* message, size_t message_size);

/// Tells how many bytes of memory this device has, and how many of them nobody has taken. A device that
/// doesn't know says 0.
///
/// On a GPU on which this process has no context yet, this makes one. If the GPU is full, ggml aborts.
sdcpp_status sdcpp_device_memory(size_t index, uint64_t* free_bytes, uint64_t* total_bytes, char* message, size_t message_size);

/// Sets the parameters of a context to upstream's defaults.
sdcpp_status sdcpp_ctx_params_init(sd_ctx_params_t* params, char* message, size_t message_size);

/// Sets the parameters of a generation to upstream's defaults, among them `seed` to -1.
sdcpp_status sdcpp_img_gen_params_init(sd_img_gen_params_t* params, char* message, size_t message_size);

/// Makes a context. On failure `*ctx` is null.
sdcpp_status sdcpp_ctx_new(const sd_ctx_params_t* params, sd_ctx_t** ctx, char* message, size_t message_size);

/// Frees a context; null is ignored. Returns only for the sake of the message: the context is gone
/// in any case.
sdcpp_status sdcpp_ctx_free(sd_ctx_t* ctx, char* message, size_t message_size);

/// Generates exactly one image. `params->batch_count` must be 1.
///
/// On success `image->data` holds `width * height * channel` bytes and belongs to the caller, who
/// frees them with `sdcpp_pixels_free`. The engine's own buffer is handed over, not a copy. Size and
/// number of channels are what the engine made, which need not be what was asked for. On failure
/// `*image` is all zeros.
///
/// It ends with `SDCPP_CANCELLED` before the next step once the progress callback has returned false: by
/// `sd_cancel_generation` where the engine has it, else by an exception that leaves the callback and is
/// caught here. Not while weights are read, which leaves threads behind.
///
/// The seed is the 64 bits of `params->seed`. A negative number is a seed like any other if
/// `sdcpp_every_seed` says so, and `SDCPP_UNSUPPORTED` otherwise: never another seed.
sdcpp_status sdcpp_generate(sd_ctx_t* ctx,
                            const sd_img_gen_params_t* params,
                            sd_image_t* image,
                            char* message,
                            size_t message_size);

/// Frees the pixels of an image; null is ignored.
void sdcpp_pixels_free(uint8_t* pixels);

/// Whether the engine takes a negative seed as it is. An engine that was built elsewhere replaces it
/// by one from the clock.
bool sdcpp_every_seed(void);

/// Throws and catches, as a test of this layer: that it was compiled and linked such that exceptions
/// do arrive, which depends on flags and libraries and not on this source alone.
sdcpp_status sdcpp_throw(sdcpp_thrown what, char* message, size_t message_size);

#if SDCPP_TOKENIZE
/// Makes tokens of a prompt as Stable Diffusion 3.5's encoders get them: those for CLIP-L and those for
/// T5, one after the other. `*count` is how many there are; as many of them as fit are in `tokens`.
sdcpp_status sdcpp_tokenize(const char* prompt,
                            int32_t* tokens,
                            size_t room,
                            size_t* count,
                            char* message,
                            size_t message_size);
#endif

#ifdef __cplusplus
}
#endif

#endif
