/* The mixture of what token memory found with the model's distribution, as `mixture.py` says. Each position is computed by
   itself. FEATURES and HIDDEN are sizes of the network that gives lambda, MOST is the largest lambda, and TEMPERATURE that
   of shares before it is known. */

#include "vectors.h"

/* What is learned of a mixture: mean and deviation of its features, and the two layers of its network. */
typedef struct {
    const float *mean, *deviation, *inner, *inner_bias, *outer, *outer_bias;
} Network;

/* softmax(temperature * similarity) over the entries with a next token, 0 for the others. */
static void shares_of(const float *similarity, const int64_t *tokens, long k, float temperature, float *shares) {
    float best = -INFINITY, total = 0;
    for (long i = 0; i < k; i++)
        if (tokens[i] >= 0 && similarity[i] * temperature > best) best = similarity[i] * temperature;
    for (long i = 0; i < k; i++) {
        shares[i] = tokens[i] >= 0 ? expf(similarity[i] * temperature - best) : 0;
        total += shares[i];
    }
    for (long i = 0; i < k; i++) shares[i] /= total > 1e-12f ? total : 1e-12f;
}

/* The sum of the shares of all entries with the token of entry i. */
static float mass_of(const float *shares, const int64_t *tokens, long k, long i) {
    float mass = 0;
    for (long j = 0; j < k; j++) mass += tokens[j] == tokens[i] ? shares[j] : 0;
    return mass;
}

/* One position: log-probabilities [vocabulary] of the mixture in place of logits, lambda times each entry's share to
   weights [k]. */
static void mixed(float *logits, long vocabulary, const float *similarity, const int64_t *tokens, long k,
                  const Network *network, float *weights) {
    Floats most = all(-INFINITY), total = all(0.0f), moment = all(0.0f);
    long whole = vocabulary / WIDE * WIDE, first = 0;
    for (long i = 0; i < whole; i += WIDE) most = choose(load(logits + i) > most, load(logits + i), most);
    float best = largest(most), rest = 0, rest_moment = 0;
    for (long i = whole; i < vocabulary; i++) best = logits[i] > best ? logits[i] : best;
    while (first < whole && !lanes_of(load(logits + first) == all(best))) first += WIDE;
    while (first < vocabulary - 1 && logits[first] != best) first++;
    for (long i = 0; i < whole; i += WIDE) {
        Floats x = load(logits + i) - best, p = power(x);
        total += p;
        moment += choose(p > all(0.0f), p * x, all(0.0f));
    }
    for (long i = whole; i < vocabulary; i++) {
        float x = logits[i] - best, p = expf(x);
        rest += p;
        rest_moment += p > 0 ? p * x : 0;
    }
    float all_p = sum(total) + rest, scale = logf(all_p), entropy = scale - (sum(moment) + rest_moment) / all_p;

    float shares[k], masses[k], memory_entropy = 0, near = 0, nearest = 0;
    shares_of(similarity, tokens, k, TEMPERATURE, shares);
    long choice = 0, known = 0;
    for (long i = 0; i < k; i++) {
        masses[i] = mass_of(shares, tokens, k, i);
        memory_entropy -= shares[i] * logf(masses[i] > 1e-12f ? masses[i] : 1e-12f);
        float filled = tokens[i] >= 0 ? similarity[i] : 0;
        near += filled;
        nearest += i < 8 ? filled : 0;
        known += tokens[i] >= 0;
        masses[i] = tokens[i] >= 0 ? masses[i] : 0;
        choice = masses[i] > masses[choice] ? i : choice;
    }
    long chosen = tokens[choice] > 0 ? tokens[choice] : 0;
    float of_choice = logits[chosen] - best - scale;
    float features[FEATURES] = {
        tokens[0] >= 0 ? similarity[0] : 0, nearest / (k < 8 ? k : 8), near / k, masses[choice], memory_entropy, entropy,
        -scale, of_choice > -20 ? of_choice : -20, chosen == first,
    };
    float answer[2] = {network->outer_bias[0], network->outer_bias[1]};
    for (long h = 0; h < HIDDEN; h++) {
        float inner = network->inner_bias[h];
        for (long f = 0; f < FEATURES; f++)
            inner += network->inner[h * FEATURES + f] * (features[f] - network->mean[f]) / network->deviation[f];
        for (long o = 0; o < 2; o++) answer[o] += network->outer[o * HIDDEN + h] * tanhf(inner);
    }
    float lambda = known ? 1 / (1 + expf(-answer[0])) : 0;
    lambda = lambda > MOST ? MOST : lambda;
    float warmth = answer[1] < -3 ? -3 : answer[1] > 3 ? 3 : answer[1];
    shares_of(similarity, tokens, k, TEMPERATURE * expf(warmth), shares);

    float shift = log1pf(-lambda) - best - scale;
    for (long i = 0; i < whole; i += WIDE) store(logits + i, load(logits + i) + shift);
    for (long i = whole; i < vocabulary; i++) logits[i] += shift;
    for (long i = 0; i < k; i++) {
        weights[i] = lambda * shares[i];
        long earlier = 0;
        while (earlier < i && tokens[earlier] != tokens[i]) earlier++;
        if (tokens[i] < 0 || earlier < i) continue; /* of entries with the same token the first speaks for all */
        float memory = lambda * mass_of(shares, tokens, k, i), model = logits[tokens[i]];
        memory = logf(memory > 1e-30f ? memory : 1e-30f);
        float high = memory > model ? memory : model, low = memory > model ? model : memory;
        logits[tokens[i]] = high + log1pf(expf(low - high));
    }
}

/* `mixture.mix` of what `Mixture` makes of `describe`. logits: [n, vocabulary]; similarity: [n, k], best first; tokens:
   [n, k], -1 for none. Leaves log-probabilities in place of logits, and weights [n, k]. */
void mix(float *logits, long n, long vocabulary, const float *similarity, const int64_t *tokens, long k,
         const float *mean, const float *deviation, const float *inner, const float *inner_bias, const float *outer,
         const float *outer_bias, float *weights) {
    Network network = {mean, deviation, inner, inner_bias, outer, outer_bias};
#pragma omp parallel for
    for (long r = 0; r < n; r++)
        mixed(logits + r * vocabulary, vocabulary, similarity + r * k, tokens + r * k, k, &network, weights + r * k);
}
