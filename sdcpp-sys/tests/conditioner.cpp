// Upstream's way from a prompt to what the diffusion model is given, with encoders that have no weights.
//
// The structure itself is taken from upstream's header by the test that compiles this file, once with all
// corrections and once without each. What is not of interest in it stands here: encoders that check what they
// are given and answer with zeros of the right shape.
//
// usage: conditioner ENCODERS < PROMPTS, where 1 is CLIP-L, 2 is CLIP-G and 4 is T5, added up, and a NUL ends each
// prompt. For each it prints the numbers of chunks that the encoders were given, and the sizes of the results.

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/tensor.hpp"
#include "core/util.h"
#include "ggml.h"
#include "tokenizers/clip_tokenizer.h"
#include "tokenizers/t5_unigram_tokenizer.h"

struct WeightAdapter {};
struct RunnerWeightManager {};
using String2TensorStorage = std::map<std::string, int>;

struct SDCondition {
    sd::Tensor<float> c_crossattn;
    sd::Tensor<float> c_vector;
};

struct ConditionerParams {
    std::string text;
    int clip_skip        = -1;
    bool zero_out_masked = false;
};

struct Conditioner {
    virtual ~Conditioner()                                                                 = default;
    virtual SDCondition get_learned_condition(int, const ConditionerParams&)               = 0;
    virtual void get_param_tensors(std::map<std::string, ggml_tensor*>&)                   = 0;
    virtual void set_max_graph_vram_bytes(size_t)                                          = 0;
    virtual void set_stream_layers_enabled(bool)                                           = 0;
    virtual void set_flash_attention_enabled(bool)                                         = 0;
    virtual void set_weight_adapter(const std::shared_ptr<WeightAdapter>&)                 = 0;
    virtual void runner_done()                                                             = 0;
};

struct Encoder {
    int chunks = 0;

    void check(const sd::Tensor<int32_t>& ids, int vocabulary) {
        if (ids.values().size() != 77) {
            throw std::runtime_error("a chunk is not of 77 tokens");
        }
        for (int32_t id : ids.values()) {
            if (id < 0 || id >= vocabulary) {
                throw std::runtime_error("a token that there is not");
            }
        }
    }

    void get_param_tensors(std::map<std::string, ggml_tensor*>&, const std::string&) {}
    void set_max_graph_vram_bytes(size_t) {}
    void set_stream_layers_enabled(bool) {}
    void set_flash_attention_enabled(bool) {}
    void set_weight_adapter(const std::shared_ptr<WeightAdapter>&) {}
    void runner_done() {}
};

enum CLIPVersion { OPENAI_CLIP_VIT_L_14, OPEN_CLIP_VIT_BIGG_14 };

struct CLIPTextModelRunner : Encoder {
    int64_t width;

    template <typename... Rest>
    CLIPTextModelRunner(ggml_backend_t, const String2TensorStorage&, const std::string&, CLIPVersion version, Rest...)
        : width(version == OPENAI_CLIP_VIT_L_14 ? 768 : 1280) {}

    template <typename... Rest>
    sd::Tensor<float> compute(int, const sd::Tensor<int32_t>& ids, int, void*, size_t, bool pooled, Rest...) {
        check(ids, 49408);
        if (pooled) {
            return sd::Tensor<float>::zeros({width});
        }
        chunks++;
        return sd::Tensor<float>::zeros({width, 77, 1});
    }
};

struct T5Runner : Encoder {
    template <typename... Rest>
    T5Runner(ggml_backend_t, const String2TensorStorage&, const std::string&, Rest...) {}

    template <typename... Rest>
    sd::Tensor<float> compute(int, const sd::Tensor<int32_t>& ids, Rest...) {
        check(ids, 32128);
        chunks++;
        return sd::Tensor<float>::zeros({4096, 77, 1});
    }
};

static sd::Tensor<float> apply_token_weights(sd::Tensor<float> hidden_states, const std::vector<float>& weights) {
    for (float weight : weights) {
        if (!(weight >= -1e6f && weight <= 1e6f)) {
            throw std::runtime_error("a weight that is no number");
        }
    }
    return hidden_states;
}

#include "sd3_clip_embedder.inc"

int main(int, char** arguments) {
    const int encoders = std::atoi(arguments[1]);
    String2TensorStorage tensors;
    for (auto [bit, name] : {std::pair{1, "clip_l"}, {2, "clip_g"}, {4, "t5xxl"}}) {
        if (encoders & bit) {
            tensors[std::string("text_encoders.") + name + ".x"] = 0;
        }
    }
    try {
        SD3CLIPEmbedder embedder(nullptr, tensors);
        const auto chunks = [](const auto& encoder) { return encoder ? std::exchange(encoder->chunks, 0) : 0; };
        for (std::string prompt; std::getline(std::cin, prompt, '\0');) {
            ConditionerParams parameters;
            parameters.text             = prompt;
            const SDCondition condition = embedder.get_learned_condition(1, parameters);
            const auto& shape           = condition.c_crossattn.shape();
            const int l                 = chunks(embedder.clip_l);
            const int g                 = chunks(embedder.clip_g);
            const int t5                = chunks(embedder.t5);
            std::printf("%d %d %d %d %d\n",
                        l,
                        g,
                        t5,
                        shape.size() > 1 ? static_cast<int>(shape[1]) : 0,
                        static_cast<int>(condition.c_vector.values().size()));
        }
        return 0;
    } catch (const std::exception& error) {
        std::printf("thrown: %s\n", error.what());
        return 1;
    }
}
