#include <algorithm>
#include <string>
#include <vector>

#include "core/util.h"
#include "guarded.h"
#include "tokenizers/clip_tokenizer.h"
#include "tokenizers/t5_unigram_tokenizer.h"

sdcpp_status sdcpp_tokenize(const char* prompt,
                            int32_t* tokens,
                            size_t room,
                            size_t* count,
                            char* message,
                            size_t message_size) {
    return guarded(message, message_size, [&] {
        if (prompt == nullptr || count == nullptr || (tokens == nullptr && room > 0)) {
            tell(message, message_size, "no prompt or no place for the tokens");
            return SDCPP_NULL_ARGUMENT;
        }
        // Reading the vocabularies takes a tenth of a second.
        static CLIPTokenizer clip;
        static T5UniGramTokenizer t5;
        // As upstream's SD3CLIPEmbedder::tokenize does.
        std::vector<int> all;
        const auto parts = parse_prompt_attention(prompt);
        for (Tokenizer* tokenizer : {static_cast<Tokenizer*>(&clip), static_cast<Tokenizer*>(&t5)}) {
            std::vector<int> found;
            std::vector<float> weights;
            for (const auto& part : parts) {
                const std::vector<int> some = tokenizer->encode(part.first);
                found.insert(found.end(), some.begin(), some.end());
                weights.insert(weights.end(), some.size(), part.second);
            }
            tokenizer->pad_tokens(found, &weights, nullptr, 77, 77, true);
            if (found.size() != weights.size()) {
                tell(message, message_size, "there are more tokens than weights, or fewer");
                return SDCPP_NO_RESULT;
            }
            all.insert(all.end(), found.begin(), found.end());
        }
        *count = all.size();
        std::copy_n(all.begin(), std::min(room, all.size()), tokens);
        return SDCPP_OK;
    });
}
