/* Bicubic resizing of RGB images, bit for bit as Pillow does it, and straight into tiles.
 *
 * Pillow's arithmetic for 8-bit images: every output sample has a window of input samples; its weights are computed and
 * normalised in double and rounded to fixed point with 22 fractional bits; products are summed in int32, rounded and
 * clipped to 0..255. Each of the two passes rounds, so their order matters: the caller says which one comes first.
 *
 * Pixels of the source have four bytes, of which the last is ignored (Pillow's own layout of RGB); pixels of the tiles
 * have three. Only x86-64 with AVX2 (`nvlm_resize_usable` asks the CPU). Integer sums are exact in any order, so there
 * is no rounding to lose; weights are, if compiled with -ffp-contract=off, rounded as Pillow's build rounds them.
 *
 * Sizes are the caller's to check (nvlm_trt/model/resize_kernel.py does); none comes from a request as it is.
 */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define FRACTION_BITS 22
#define LOW_BITS 15 /* of a weight; see `pair_t` */
#define GROUP 4     /* rows that the horizontal pass takes at once */
#define PIXEL 4     /* bytes of a source pixel */
#define BLOCK 32    /* bytes of a row that the vertical pass takes at once */
#define PAIR (2 * GROUP * PIXEL) /* bytes of two neighbouring pixels of a group's rows */

#define AVX2 __attribute__((target("avx2")))
#define AVX2_INLINE static inline __attribute__((always_inline, target("avx2")))

enum { DONE = 0, NO_MEMORY = 1, BAD_WINDOW = 2 };

/* Weights of two neighbouring inputs, the first one's in the lower 16 bits. A weight has up to 24 bits and vpmaddwd
 * multiplies 16, so they come as high * 2^15 + low; sums of either part may wrap, their sum of sums does not. */
typedef struct {
    uint32_t low, high;
} pair_t;

/* One axis: output i is the sum over pairs[i * stride + t] times the inputs first[i] + 2 t and the next one. */
typedef struct {
    int32_t *first, *count;
    pair_t *pairs;
    int stride;
} taps_t;

/* ---- weights ---- */

static int least(int a, int b) { return a < b ? a : b; }

static double bicubic(double x) { /* with a = -1/2 */
    if (x < 0.0) x = -x;
    if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1.0;
    if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5;
    return 0.0;
}

static double stretch(int in, int out) { /* the filter is as wide as the reduction asks, never narrower */
    double scale = (double)in / out;
    return scale < 1.0 ? 1.0 : scale;
}

static double centre_of(int in, int out, int i) { return (i + 0.5) * ((double)in / out); }

static void window_of(int in, int out, int i, int *first, int *end) {
    double centre = centre_of(in, out, i), reach = 2.0 * stretch(in, out);
    *first = (int)(centre - reach + 0.5);
    if (*first < 0) *first = 0;
    *end = least((int)(centre + reach + 0.5), in);
}

static void put_weight(pair_t *pairs, int place, double exact) {
    double scaled = exact * (1 << FRACTION_BITS);
    int32_t weight = (int32_t)(scaled < 0.0 ? scaled - 0.5 : scaled + 0.5);
    int shift = place % 2 * 16;
    pairs[place / 2].low |= (uint32_t)(weight & ((1 << LOW_BITS) - 1)) << shift;
    pairs[place / 2].high |= (uint32_t)(uint16_t)(weight >> LOW_BITS) << shift;
}

static void free_taps(taps_t *taps) {
    free(taps->first);
    free(taps->count);
    free(taps->pairs);
}

/* Of outputs [from, to). `even`: pairs begin at even inputs; the weights around a window are 0. */
static int make_taps(taps_t *taps, int in, int out, int from, int to, int even) {
    size_t n = (size_t)(to - from);
    double wide = stretch(in, out);
    taps->stride = (int)(2.0 * wide) + 3;
    taps->first = malloc(n * sizeof *taps->first);
    taps->count = malloc(n * sizeof *taps->count);
    taps->pairs = calloc(n * (size_t)taps->stride, sizeof *taps->pairs);
    double *exact = malloc(2 * (size_t)taps->stride * sizeof *exact);
    int state = taps->first && taps->count && taps->pairs && exact ? DONE : NO_MEMORY;
    for (int i = from; state == DONE && i < to; i++) {
        pair_t *pairs = taps->pairs + (size_t)(i - from) * (size_t)taps->stride;
        double centre = centre_of(in, out, i), total = 0.0;
        int first, end;
        window_of(in, out, i, &first, &end);
        for (int x = first; x < end; x++) {
            exact[x - first] = bicubic((x - centre + 0.5) * (1.0 / wide));
            total += exact[x - first];
        }
        int begin = even ? first & ~1 : first;
        for (int x = first; x < end; x++)
            put_weight(pairs, x - begin, total != 0.0 ? exact[x - first] / total : exact[x - first]);
        taps->first[i - from] = begin;
        taps->count[i - from] = (end - begin + 1) / 2;
    }
    free(exact);
    return state;
}

/* ---- the two passes ---- */

/* Bytes of two inputs in turns, widened to 16 bits: their weighted sums are added to eight sums. */
AVX2_INLINE void add(__m256i *low, __m256i *high, __m256i inputs, const pair_t *pair) {
    *low = _mm256_add_epi32(*low, _mm256_madd_epi16(inputs, _mm256_set1_epi32((int)pair->low)));
    *high = _mm256_add_epi32(*high, _mm256_madd_epi16(inputs, _mm256_set1_epi32((int)pair->high)));
}

AVX2_INLINE __m256i half(void) { return _mm256_set1_epi32(1 << (FRACTION_BITS - 1)); }

AVX2_INLINE __m256i rounded(__m256i low, __m256i high) {
    return _mm256_srai_epi32(_mm256_add_epi32(low, _mm256_slli_epi32(high, LOW_BITS)), FRACTION_BITS);
}

/* `size` (at most BLOCK) bytes of an output row, from 2 * count rows; packing undoes the order that unpacking made. */
AVX2_INLINE void vertical_block(uint8_t *out, const uint8_t *const *rows, const pair_t *pairs, int count, size_t at,
                                size_t size) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i low[4], high[4];
    for (int k = 0; k < 4; k++) low[k] = half(), high[k] = zero;
    for (int t = 0; t < count; t++) {
        __m256i a = zero, b = zero;
        memcpy(&a, rows[2 * t] + at, size);
        memcpy(&b, rows[2 * t + 1] + at, size);
        __m256i first = _mm256_unpacklo_epi8(a, b), second = _mm256_unpackhi_epi8(a, b);
        add(&low[0], &high[0], _mm256_unpacklo_epi8(first, zero), pairs + t);
        add(&low[1], &high[1], _mm256_unpackhi_epi8(first, zero), pairs + t);
        add(&low[2], &high[2], _mm256_unpacklo_epi8(second, zero), pairs + t);
        add(&low[3], &high[3], _mm256_unpackhi_epi8(second, zero), pairs + t);
    }
    __m256i first = _mm256_packs_epi32(rounded(low[0], high[0]), rounded(low[1], high[1]));
    __m256i second = _mm256_packs_epi32(rounded(low[2], high[2]), rounded(low[3], high[3]));
    __m256i done = _mm256_packus_epi16(first, second); /* the packs clip to 0..255 */
    memcpy(out + at, &done, size);
}

AVX2 static void vertical(uint8_t *out, const uint8_t *const *rows, const pair_t *pairs, int count, size_t size) {
    size_t at = 0;
    for (; at + BLOCK <= size; at += BLOCK) vertical_block(out, rows, pairs, count, at, BLOCK);
    if (at < size) vertical_block(out, rows, pairs, count, at, size - at);
}

/* Weave four rows: for every two pixels, row by row, byte by byte, the one's and the other's. */
AVX2 static void weave(uint8_t *woven, const uint8_t *const *rows, int width) {
    const __m128i in_turns = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    for (int x = 0; x < width; x += 4) {
        size_t size = (size_t)least(4, width - x) * PIXEL;
        __m128i row[GROUP];
        for (int r = 0; r < GROUP; r++) {
            row[r] = _mm_setzero_si128();
            if (size == sizeof *row)
                row[r] = _mm_loadu_si128((const __m128i *)(rows[r] + (size_t)x * PIXEL));
            else
                memcpy(&row[r], rows[r] + (size_t)x * PIXEL, size);
            row[r] = _mm_shuffle_epi8(row[r], in_turns);
        }
        __m128i *out = (__m128i *)(woven + (size_t)(x / 2) * PAIR);
        _mm_storeu_si128(out, _mm_unpacklo_epi64(row[0], row[1]));
        _mm_storeu_si128(out + 1, _mm_unpacklo_epi64(row[2], row[3]));
        _mm_storeu_si128(out + 2, _mm_unpackhi_epi64(row[0], row[1]));
        _mm_storeu_si128(out + 3, _mm_unpackhi_epi64(row[2], row[3]));
    }
}

/* `out_width` pixels of four rows. */
AVX2 static void horizontal(uint8_t *const *out, const uint8_t *woven, const taps_t *taps, int out_width) {
    for (int i = 0; i < out_width; i++) {
        const pair_t *pairs = taps->pairs + (size_t)i * (size_t)taps->stride;
        const uint8_t *at = woven + (size_t)(taps->first[i] / 2) * PAIR;
        __m256i low[2] = {half(), half()}, high[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        for (int t = 0; t < taps->count[i]; t++, at += PAIR) {
            add(&low[0], &high[0], _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)at)), pairs + t);
            add(&low[1], &high[1], _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)at + 1)), pairs + t);
        }
        __m256i words = _mm256_packs_epi32(rounded(low[0], high[0]), rounded(low[1], high[1]));
        __m256i bytes = _mm256_packus_epi16(words, words); /* rows 0 and 2 in its lower half, 1 and 3 in its upper */
        uint64_t even = (uint64_t)_mm256_extract_epi64(bytes, 0), odd = (uint64_t)_mm256_extract_epi64(bytes, 2);
        uint32_t pixels[GROUP] = {(uint32_t)even, (uint32_t)odd, (uint32_t)(even >> 32), (uint32_t)(odd >> 32)};
        for (int r = 0; r < GROUP; r++) memcpy(out[r] + (size_t)i * PIXEL, &pixels[r], PIXEL);
    }
}

/* ---- the whole ---- */

typedef struct {
    const uint8_t *rows; /* rows [first, first + count) of the source */
    ptrdiff_t stride;
    int first, count, width;
} source_t;

typedef struct {
    uint8_t *data; /* [rows of tiles, columns, height, width, 3] */
    int width, height, columns;
} tiles_t;

/* What lies between the passes, and the axes. Without taps an axis keeps its size. */
typedef struct {
    taps_t across, down;
    uint8_t *woven, *memory;
    uint8_t *out[GROUP];
    uint8_t **kept; /* rows that the first pass has made */
    int num_kept;
    const uint8_t **inputs; /* rows that the vertical pass takes */
} work_t;

/* Rows beyond the window's end fill a group or a pair up: they repeat its last row, and do not count. */
static const uint8_t *source_row(const source_t *source, int y) {
    return source->rows + (ptrdiff_t)least(y - source->first, source->count - 1) * source->stride;
}

/* A row of the resized image to its places in the tiles. */
static void put_row(const tiles_t *tiles, int y, const uint8_t *row) {
    size_t line = (size_t)tiles->width * 3, tile = line * (size_t)tiles->height;
    uint8_t *out = tiles->data + (size_t)(y / tiles->height) * (size_t)tiles->columns * tile;
    out += (size_t)(y % tiles->height) * line;
    for (int c = 0; c < tiles->columns; c++, out += tile) {
        uint8_t *at = out;
        for (int x = 1; x < tiles->width; x++, row += PIXEL, at += 3) memcpy(at, row, PIXEL); /* the 4th is written over */
        memcpy(at, row, 3);
        row += PIXEL;
    }
}

static void free_work(work_t *work) {
    free_taps(&work->across);
    free_taps(&work->down);
    free(work->woven);
    free(work->memory);
    free(work->kept);
    free(work->inputs);
}

static int make_work(work_t *work, int width, int out_width, int height, int out_height, int from, int to) {
    if (width != out_width && make_taps(&work->across, width, out_width, 0, out_width, 1) != DONE) return NO_MEMORY;
    if (height != out_height && make_taps(&work->down, height, out_height, from, to, 0) != DONE) return NO_MEMORY;
    int most_inputs = 2 * work->down.stride;
    size_t wide = (size_t)(width > out_width ? width : out_width) * PIXEL;
    work->num_kept = most_inputs + GROUP;
    work->woven = malloc(((size_t)width + 3) / 4 * 2 * PAIR);
    work->memory = malloc(wide * (GROUP + (size_t)work->num_kept));
    work->kept = malloc((size_t)work->num_kept * sizeof *work->kept);
    work->inputs = malloc((size_t)work->num_kept * sizeof *work->inputs);
    if (!work->woven || !work->memory || !work->kept || !work->inputs) return NO_MEMORY;
    for (int r = 0; r < GROUP; r++) work->out[r] = work->memory + wide * (size_t)r;
    for (int r = 0; r < work->num_kept; r++) work->kept[r] = work->memory + wide * (size_t)(GROUP + r);
    return DONE;
}

/* Four rows through the horizontal pass, where there is one; those that came out lie in `passed`. */
static void pass_across(work_t *work, const uint8_t **passed, const uint8_t *const *rows, int width, int out_width) {
    for (int r = 0; r < GROUP; r++) passed[r] = work->across.pairs ? work->out[r] : rows[r];
    if (!work->across.pairs) return;
    weave(work->woven, rows, width);
    horizontal(work->out, work->woven, &work->across, out_width);
}

static void pass_down(work_t *work, uint8_t *out, int i, size_t size) {
    vertical(out, work->inputs, work->down.pairs + (size_t)i * (size_t)work->down.stride, work->down.count[i], size);
}

/* The vertical pass first, if there is one. */
static void down_then_across(work_t *work, const source_t *source, const tiles_t *tiles, int from, int to) {
    int out_width = tiles->width * tiles->columns;
    for (int y = from; y < to; y += GROUP) {
        const uint8_t *rows[GROUP], *passed[GROUP];
        for (int r = 0; r < GROUP; r++) {
            int last = least(r, to - 1 - y), i = y + last - from; /* a short group repeats its last row */
            rows[r] = work->down.pairs ? work->kept[last] : source_row(source, y + last);
            if (!work->down.pairs || r > last) continue;
            for (int t = 0; t < 2 * work->down.count[i]; t++)
                work->inputs[t] = source_row(source, work->down.first[i] + t);
            pass_down(work, work->kept[r], i, (size_t)source->width * PIXEL);
        }
        pass_across(work, passed, rows, source->width, out_width);
        for (int r = 0; r < least(GROUP, to - y); r++) put_row(tiles, y + r, passed[r]);
    }
}

/* The horizontal pass first: its rows stay as long as the vertical one looks at them. */
static void across_then_down(work_t *work, const source_t *source, const tiles_t *tiles, int from, int to) {
    int out_width = tiles->width * tiles->columns;
    int ready = work->down.first[0]; /* rows from there up to `ready` have passed, and the latest are kept */
    for (int y = from; y < to; y++) {
        int first = work->down.first[y - from], end = first + 2 * work->down.count[y - from];
        for (; ready < end; ready += GROUP) {
            const uint8_t *rows[GROUP];
            uint8_t *out[GROUP];
            for (int r = 0; r < GROUP; r++) {
                rows[r] = source_row(source, ready + r);
                out[r] = work->kept[(ready + r) % work->num_kept];
            }
            weave(work->woven, rows, source->width);
            horizontal(out, work->woven, &work->across, out_width);
        }
        for (int t = 0; t < end - first; t++) work->inputs[t] = work->kept[(first + t) % work->num_kept];
        pass_down(work, work->out[0], y - from, (size_t)out_width * PIXEL);
        put_row(tiles, y, work->out[0]);
    }
}

/* The digest of this file when it was compiled. */
const char *nvlm_resize_source(void) { return NVLM_SOURCE_DIGEST; }

/* Whether this CPU can run the rest. */
int nvlm_resize_usable(void) { return __builtin_cpu_supports("avx2"); }

/* The source rows [*first, *end) that rows [from, to) of the resized image are made of. */
void nvlm_resize_window(int height, int out_height, int from, int to, int *first, int *end) {
    int unused;
    *first = from, *end = to;
    if (height == out_height) return;
    window_of(height, out_height, from, first, &unused);
    window_of(height, out_height, to - 1, &unused, end);
}

/* Rows [from, to) of an image of width x height pixels resized to (tile_width * columns) x out_height pixels, put into
 * tiles [out_height / tile_height, columns, tile_height, tile_width, 3]. `rows` are the source's rows [first, end) at
 * least, `stride` bytes apart, as nvlm_resize_window tells them. */
int nvlm_resize(const uint8_t *rows, ptrdiff_t stride, int first, int end, int width, int height, uint8_t *tile_data,
                int tile_width, int tile_height, int columns, int out_height, int from, int to, int vertical_first) {
    int needed_first, needed_end;
    nvlm_resize_window(height, out_height, from, to, &needed_first, &needed_end);
    if (first > needed_first || end < needed_end) return BAD_WINDOW;

    source_t source = {rows, stride, first, end - first, width};
    tiles_t tiles = {tile_data, tile_width, tile_height, columns};
    work_t work = {0};
    int state = make_work(&work, width, tile_width * columns, height, out_height, from, to);
    if (state == DONE) {
        if (vertical_first || !work.across.pairs || !work.down.pairs)
            down_then_across(&work, &source, &tiles, from, to);
        else
            across_then_down(&work, &source, &tiles, from, to);
    }
    free_work(&work);
    return state;
}
