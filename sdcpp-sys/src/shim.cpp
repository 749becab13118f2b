#include "shim.h"

#include <cstdlib>
#include <new>
#include <stdexcept>

#if SDCPP_TELLS_DEVICES
#include "ggml-backend.h"
#endif
#include "guarded.h"

namespace {

// Leaves the engine between two steps. Not a std::exception, so that nobody on the way takes it for one.
struct Cancelled {};

sd_log_cb_t log_callback           = nullptr;
sdcpp_progress_cb progress_callback = nullptr;
void* callback_data                 = nullptr;

// What the engine does on this thread.
struct Running {
    Running(sd_ctx_t* ctx, sdcpp_phase phase, int steps) noexcept : ctx(ctx), phase(phase), steps(steps) {
        current = this;
    }
    ~Running() { current = nullptr; }
    Running(const Running&)            = delete;
    Running& operator=(const Running&) = delete;

    // Whether to go on.
    bool tell(sdcpp_phase phase, int step, int steps) noexcept {
        return progress_callback == nullptr || progress_callback(phase, step, steps, callback_data);
    }

    void enter(sdcpp_phase next) noexcept {
        if (phase != next) {
            phase = next;
            tell(phase, 0, 0);
        }
    }

    static thread_local Running* current;
    sd_ctx_t* ctx;
    sdcpp_phase phase;
    // Of the sampler, as it was asked for.
    int steps;
    bool is_loading = false;
    bool cancelled  = false;
};
thread_local Running* Running::current = nullptr;

// Whether this engine has been heard to say that it loads weights. If so, it says it every time.
thread_local bool announces_loading = false;

bool begins(const char* text, const char* start) noexcept {
    return std::strncmp(text, start, std::strlen(start)) == 0;
}

// The log says what the numbers of the progress callback mean: upstream has one for all.
void on_log(sd_log_level_t level, const char* text, void*) {
    Running* running = Running::current;
    if (running != nullptr && text != nullptr) {
        // Behind file and line. Prompts stand in the log too, but never at the beginning.
        const char* said = std::strstr(text, " - ");
        said             = said != nullptr ? said + 3 : text;
        if (begins(said, "loading tensors completed")) {
            running->is_loading = false;
        } else if (begins(said, "loading ") && std::strstr(said, " tensors from ") != nullptr) {
            running->is_loading = announces_loading = true;
        } else if (running->phase == SDCPP_PHASE_ENCODE && begins(said, "get_learned_condition completed")) {
            running->enter(SDCPP_PHASE_SAMPLE);
        } else if (running->phase == SDCPP_PHASE_SAMPLE && begins(said, "decoding ")) {
            running->enter(SDCPP_PHASE_DECODE);
        }
    }
    if (log_callback != nullptr) {
        log_callback(level, text, callback_data);
    }
}

void on_progress(int step, int steps, float, void*) {
    Running* running = Running::current;
    if (running == nullptr) {
        return;
    }
    // Weights are read by threads of their own while this one tells how far they are. An exception from
    // here would destroy them while they run, which ends the process. An engine that does not announce it
    // is given away by its count only.
    const bool is_loading = running->phase == SDCPP_PHASE_LOAD || running->is_loading ||
                            (!announces_loading && steps != running->steps);
    if (is_loading) {
        running->tell(SDCPP_PHASE_LOAD, step, steps);
        return;
    }
    if (running->phase == SDCPP_PHASE_ENCODE) {
        running->phase = SDCPP_PHASE_SAMPLE;
    }
    const bool go_on = running->tell(running->phase, step, steps);
    if (running->phase == SDCPP_PHASE_SAMPLE && step >= steps) {
        running->enter(SDCPP_PHASE_DECODE);
    }
    if (!go_on) {
        running->cancelled = true;
#if SDCPP_CAN_CANCEL
        sd_cancel_generation(running->ctx, SD_CANCEL_ALL);
#else
        throw Cancelled();
#endif
    }
}

// What the engine gives back for one generation.
struct Images {
    sd_image_t* array;
    int count;
};

Images generate(sd_ctx_t* ctx, const sd_img_gen_params_t* params) {
#if SDCPP_GENERATE_RETURNS_FLAG
    Images images = {nullptr, 0};
    if (!generate_image(ctx, params, &images.array, &images.count) && images.array != nullptr) {
        free_sd_images(images.array, images.count);
        images = {nullptr, 0};
    }
    return images;
#else
    return {generate_image(ctx, params), params->batch_count};
#endif
}

#if SDCPP_TELLS_DEVICES
// Must not ask for memory: on a GPU that is full, ggml aborts.
void describe(ggml_backend_dev_t found, sdcpp_device* device) {
    tell(device->name, sizeof(device->name), ggml_backend_dev_name(found));
    tell(device->description, sizeof(device->description), ggml_backend_dev_description(found));
    tell(device->back_end, sizeof(device->back_end), ggml_backend_reg_name(ggml_backend_dev_backend_reg(found)));
    device->is_cpu = ggml_backend_dev_type(found) == GGML_BACKEND_DEVICE_TYPE_CPU;
}
#endif

}  // namespace

sdcpp_status sdcpp_default_device(sdcpp_device* device, char* message, size_t message_size) {
    if (device != nullptr) {
        *device = {};
    }
    return guarded(message, message_size, [&] {
        if (device == nullptr) {
            tell(message, message_size, "no place for the device");
            return SDCPP_NULL_ARGUMENT;
        }
#if SDCPP_TELLS_DEVICES
        // The engine's own order.
        for (auto type : {GGML_BACKEND_DEVICE_TYPE_GPU, GGML_BACKEND_DEVICE_TYPE_IGPU, GGML_BACKEND_DEVICE_TYPE_CPU}) {
            ggml_backend_dev_t found = ggml_backend_dev_by_type(type);
            if (found == nullptr) {
                continue;
            }
            describe(found, device);
            return SDCPP_OK;
        }
        tell(message, message_size, "the engine has no device");
        return SDCPP_NO_RESULT;
#else
        tell(message, message_size, "this engine does not show its devices");
        return SDCPP_UNSUPPORTED;
#endif
    });
}

void sdcpp_set_callbacks(sd_log_cb_t log, sdcpp_progress_cb progress, void* data) {
    log_callback      = log;
    progress_callback = progress;
    callback_data     = data;
    sd_set_log_callback(on_log, nullptr);
    // Without one the engine draws a bar on standard output.
    sd_set_progress_callback(on_progress, nullptr);
}

sdcpp_status sdcpp_device_at(size_t index, sdcpp_device* device, char* message, size_t message_size) {
    if (device != nullptr) {
        *device = {};
    }
    return guarded(message, message_size, [&] {
        if (device == nullptr) {
            tell(message, message_size, "no place for the device");
            return SDCPP_NULL_ARGUMENT;
        }
#if SDCPP_TELLS_DEVICES
        if (index >= ggml_backend_dev_count()) {
            tell(message, message_size, "there is no such device");
            return SDCPP_NO_RESULT;
        }
        describe(ggml_backend_dev_get(index), device);
        return SDCPP_OK;
#else
        (void)index;
        tell(message, message_size, "this engine does not show its devices");
        return SDCPP_UNSUPPORTED;
#endif
    });
}

sdcpp_status sdcpp_device_memory(size_t index,
                                 uint64_t* free_bytes,
                                 uint64_t* total_bytes,
                                 char* message,
                                 size_t message_size) {
    return guarded(message, message_size, [&] {
        if (free_bytes == nullptr || total_bytes == nullptr) {
            tell(message, message_size, "no place for the numbers");
            return SDCPP_NULL_ARGUMENT;
        }
        *free_bytes  = 0;
        *total_bytes = 0;
#if SDCPP_TELLS_DEVICES
        if (index >= ggml_backend_dev_count()) {
            tell(message, message_size, "there is no such device");
            return SDCPP_NO_RESULT;
        }
        size_t free  = 0;
        size_t total = 0;
        ggml_backend_dev_memory(ggml_backend_dev_get(index), &free, &total);
        *free_bytes  = free;
        *total_bytes = total;
        return SDCPP_OK;
#else
        (void)index;
        tell(message, message_size, "this engine does not show its devices");
        return SDCPP_UNSUPPORTED;
#endif
    });
}

sdcpp_status sdcpp_ctx_params_init(sd_ctx_params_t* params, char* message, size_t message_size) {
    return guarded(message, message_size, [&] {
        if (params == nullptr) {
            tell(message, message_size, "no parameters");
            return SDCPP_NULL_ARGUMENT;
        }
        sd_ctx_params_init(params);
        return SDCPP_OK;
    });
}

sdcpp_status sdcpp_img_gen_params_init(sd_img_gen_params_t* params, char* message, size_t message_size) {
    return guarded(message, message_size, [&] {
        if (params == nullptr) {
            tell(message, message_size, "no parameters");
            return SDCPP_NULL_ARGUMENT;
        }
        sd_img_gen_params_init(params);
        return SDCPP_OK;
    });
}

sdcpp_status sdcpp_ctx_new(const sd_ctx_params_t* params, sd_ctx_t** ctx, char* message, size_t message_size) {
    if (ctx != nullptr) {
        *ctx = nullptr;
    }
    return guarded(message, message_size, [&] {
        if (params == nullptr || ctx == nullptr) {
            tell(message, message_size, "no parameters or no place for the context");
            return SDCPP_NULL_ARGUMENT;
        }
        Running running(nullptr, SDCPP_PHASE_LOAD, 0);
        *ctx = new_sd_ctx(params);
        if (*ctx == nullptr) {
            tell(message, message_size, "the engine made no context");
            return SDCPP_NO_RESULT;
        }
        return SDCPP_OK;
    });
}

sdcpp_status sdcpp_ctx_free(sd_ctx_t* ctx, char* message, size_t message_size) {
    return guarded(message, message_size, [&] {
        if (ctx != nullptr) {
            free_sd_ctx(ctx);
        }
        return SDCPP_OK;
    });
}

sdcpp_status sdcpp_generate(sd_ctx_t* ctx,
                            const sd_img_gen_params_t* params,
                            sd_image_t* image,
                            char* message,
                            size_t message_size) {
    if (image != nullptr) {
        *image = {};
    }
    return guarded(message, message_size, [&] {
        if (ctx == nullptr || params == nullptr || image == nullptr) {
            tell(message, message_size, "no context, no parameters or no place for the image");
            return SDCPP_NULL_ARGUMENT;
        }
        if (params->batch_count != 1) {
            tell(message, message_size, "batch_count is not 1");
            return SDCPP_UNSUPPORTED;
        }
        if (params->seed < 0 && !sdcpp_every_seed()) {
            tell(message, message_size, "this engine would replace a seed from 2^63 on by a random one");
            return SDCPP_UNSUPPORTED;
        }
        Running running(ctx, SDCPP_PHASE_ENCODE, params->sample_params.sample_steps);
        // As early as can be: what it takes to find that out may have taken a while.
        if (!running.tell(SDCPP_PHASE_ENCODE, 0, 0)) {
            tell(message, message_size, "cancelled");
            return SDCPP_CANCELLED;
        }
        Images images = {nullptr, 0};
        try {
            images = generate(ctx, params);
        } catch (const Cancelled&) {
            // As it is meant to be.
        }
        if (running.cancelled) {
            if (images.array != nullptr) {
                free_sd_images(images.array, images.count);
            }
            tell(message, message_size, "cancelled");
            return SDCPP_CANCELLED;
        }
        if (images.array != nullptr && images.count > 0) {
            *image = images.array[0];
            // So that freeing the array spares the pixels.
            images.array[0].data = nullptr;
        }
        if (images.array != nullptr) {
            free_sd_images(images.array, images.count);
        }
        if (image->data == nullptr) {
            *image = {};
            tell(message, message_size, "the engine made no image");
            return SDCPP_NO_RESULT;
        }
        return SDCPP_OK;
    });
}

void sdcpp_pixels_free(uint8_t* pixels) {
    // As free_sd_images does.
    std::free(pixels);
}

bool sdcpp_every_seed(void) {
    return SDCPP_SEED_AS_BITS != 0;
}

sdcpp_status sdcpp_throw(sdcpp_thrown what, char* message, size_t message_size) {
    return guarded(message, message_size, [&]() -> sdcpp_status {
        switch (what) {
            case SDCPP_THROW_RUNTIME_ERROR:
                throw std::runtime_error("thrown \xC3\xBC");
            case SDCPP_THROW_BAD_ALLOC:
                throw std::bad_alloc();
            case SDCPP_THROW_INT:
                throw 1;
        }
        return SDCPP_OK;
    });
}
