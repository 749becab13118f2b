// An engine that does wrong what a prompt asks for: it takes the place of stable-diffusion.cpp in tests.
//
// Pixels tell what can't be seen from outside: the first is the number of contexts made so far, of those
// that live, and of images that were not freed; the next ones are the seed.

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>

#include "stable-diffusion.h"

struct sd_ctx_t {};

namespace {

sd_log_cb_t log_callback           = nullptr;
sd_progress_cb_t progress_callback = nullptr;
void* log_data                     = nullptr;
void* progress_data                = nullptr;
std::atomic<int> contexts_made{0};
std::atomic<int> contexts{0};
std::atomic<int> images{0};
std::atomic<bool> cancelled{false};

void log(sd_log_level_t level, const char* text) {
    if (log_callback != nullptr) {
        log_callback(level, text, log_data);
    }
}

void progress(int step, int steps) {
    if (progress_callback != nullptr) {
        progress_callback(step, steps, 0.1f, progress_data);
    }
}

// As upstream does it: threads read, and this one tells how far they are. An exception from `progress`
// would destroy a thread that runs, which ends the process.
void load(int tensors, bool announced) {
    if (announced) {
        log(SD_LOG_DEBUG, "double.cpp:1    - loading 3/3 tensors from a file\n");
    }
    std::thread reader([] { std::this_thread::sleep_for(std::chrono::milliseconds(20)); });
    for (int tensor = 0; tensor <= tensors; ++tensor) {
        progress(tensor, tensors);
    }
    reader.join();
    if (announced) {
        log(SD_LOG_INFO, "double.cpp:2    - loading tensors completed, taking 0.00s\n");
    }
}

}  // namespace

void sd_set_log_callback(sd_log_cb_t cb, void* data) {
    log_callback = cb;
    log_data     = data;
}

void sd_set_progress_callback(sd_progress_cb_t cb, void* data) {
    progress_callback = cb;
    progress_data     = data;
}

const char* sd_type_name(enum sd_type_t) {
    return "f32";
}

const char* sd_rng_type_name(enum rng_type_t type) {
    return type == CUDA_RNG ? "cuda" : "other";
}

const char* sd_sample_method_name(enum sample_method_t) {
    return "euler";
}

const char* sd_scheduler_name(enum scheduler_t) {
    return "discrete";
}

const char* sd_get_system_info() {
    return "double";
}

void sd_ctx_params_init(sd_ctx_params_t* params) {
    std::memset(params, 0, sizeof(*params));
}

void sd_img_gen_params_init(sd_img_gen_params_t* params) {
    std::memset(params, 0, sizeof(*params));
    params->seed        = -1;
    params->batch_count = 1;
}

sd_ctx_t* new_sd_ctx(const sd_ctx_params_t* params) {
    if (params->clip_l_path != nullptr && std::string(params->clip_l_path) == "/throw") {
        throw std::runtime_error("thrown by new_sd_ctx");
    }
    ++contexts_made;
    ++contexts;
    return new sd_ctx_t();
}

void free_sd_ctx(sd_ctx_t* ctx) {
    --contexts;
    delete ctx;
}

void free_sd_images(sd_image_t* result_images, int num_images) {
    for (int i = 0; i < num_images; ++i) {
        std::free(result_images[i].data);
    }
    std::free(result_images);
    --images;
}

#if WITH_CANCEL
void sd_cancel_generation(sd_ctx_t*, enum sd_cancel_mode_t mode) {
    cancelled = mode == SD_CANCEL_ALL;
}
#endif

sd_image_t* generate_image(sd_ctx_t*, const sd_img_gen_params_t* params) {
    cancelled                = false;
    const std::string prompt = params->prompt;
    const int steps          = params->sample_params.sample_steps;
    if (prompt == "load") {
        load(steps, true);
    } else if (prompt == "load without a word") {
        load(steps + 1, false);
    }
    log(SD_LOG_INFO, "double.cpp:3    - get_learned_condition completed, taking 0.00s\n");
    for (int step = 0; step <= steps; ++step) {
        progress(step, steps);
        if (cancelled) {
            return nullptr;
        }
        // Long enough for somebody who wants it to end.
        if (prompt == "long") {
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
        }
    }
    log(SD_LOG_INFO, "double.cpp:4    - decoding 1 latents\n");
    if (prompt == "throw") {
        throw std::runtime_error("thrown at /a/path");
    } else if (prompt == "throw a number") {
        throw 1;
    } else if (prompt == "throw bad_alloc") {
        throw std::bad_alloc();
    } else if (prompt == "null") {
        return nullptr;
    } else if (prompt == "out of memory") {
        log(SD_LOG_ERROR, "double.cpp:5    - failed to allocate 1 GB\n");
        return nullptr;
    }
    sd_image_t* image = static_cast<sd_image_t*>(std::calloc(1, sizeof(sd_image_t)));
    image->width      = params->width;
    image->height     = params->height;
    image->channel    = 3;
    ++images;
    if (prompt == "no pixels") {
        return image;
    }
    // Whoever believes what it says reads beyond.
    const size_t size = static_cast<size_t>(params->width) * params->height * 3;
    image->data       = static_cast<uint8_t*>(std::calloc(prompt == "another size" ? 2 : 1, size));
    if (prompt == "no size") {
        image->width = 0;
    } else if (prompt == "two channels") {
        image->channel = 2;
    } else if (prompt == "another size") {
        image->height = params->height * 2;
    } else if (prompt == "huge") {
        image->width = image->height = image->channel = 0xFFFFFFFF;
    }
    const uint8_t counts[3] = {static_cast<uint8_t>(contexts_made), static_cast<uint8_t>(contexts),
                               static_cast<uint8_t>(images)};
    std::memcpy(image->data, counts, sizeof(counts));
    std::memcpy(image->data + 3, &params->seed, sizeof(params->seed));
    return image;
}
