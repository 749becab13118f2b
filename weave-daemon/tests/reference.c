/* One image by the engine's C API and nothing else: what weaved is measured against.
 * reference DIFFUSION CLIP_L TAESD PROMPT WIDTH HEIGHT STEPS CFG SEED FILE writes its bytes to FILE. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "stable-diffusion.h"

static void no_bar(int step, int steps, float time, void* data) {
    (void)step, (void)steps, (void)time, (void)data;
}

int main(int argc, char** argv) {
    if (argc != 11) {
        return 2;
    }
    sd_set_progress_callback(no_bar, NULL);

    sd_ctx_params_t model;
    sd_ctx_params_init(&model);
    model.diffusion_model_path = argv[1];
    model.clip_l_path          = argv[2];
    model.taesd_path           = argv[3];
    model.n_threads            = 1;
    sd_ctx_t* context          = new_sd_ctx(&model);
    if (context == NULL) {
        return 1;
    }

    sd_img_gen_params_t params;
    sd_img_gen_params_init(&params);
    params.prompt                         = argv[4];
    params.negative_prompt                = "";
    params.width                          = atoi(argv[5]);
    params.height                         = atoi(argv[6]);
    params.sample_params.sample_steps     = atoi(argv[7]);
    params.sample_params.guidance.txt_cfg = strtof(argv[8], NULL);
    params.seed                           = (int64_t)strtoull(argv[9], NULL, 10);
    sd_image_t* image                     = generate_image(context, &params);
    if (image == NULL || image->data == NULL) {
        return 1;
    }

    FILE* file   = fopen(argv[10], "wb");
    size_t bytes = (size_t)image->width * image->height * image->channel;
    if (file == NULL || fwrite(image->data, 1, bytes, file) != bytes || fclose(file) != 0) {
        return 1;
    }
    free_sd_images(image, 1);
    free_sd_ctx(context);
    return 0;
}
