#include "shim.h"

#include <cstdlib>
#include <new>
#include <stdexcept>

#if SDCPP_TELLS_DEVICES
#include "ggml-backend.h"
#endif
#include "guarded.h"

namespace {

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
        Images images = generate(ctx, params);
        if (images.array != nullptr && images.count > 0) {
            *image = images.array[0];
            // So that freeing the array spares the pixels.
            images.array[0].data = nullptr;
        }
        free_sd_images(images.array, images.count);
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
