// The sums that batch normalisation and its gradient take over x (..., N, C), N a whole batch with all its pixels, in
// float32 on the CPU. XLA's own sums there first write to memory what they add up, which takes most of their time; these
// write nothing, and read every array from memory once. native.py compiles this file, ../batch_norm.py uses it.
//
// A chunk of rows is summed in float32, and stays in a core's caches meanwhile. The chunks' sums are joined in float64.
// Where they begin depends on the shape alone, so that any number of cores rounds alike.

#include <numeric>

#include "common.h"

namespace {

using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Array>;

constexpr int kSums = 8;  // vectors that are added up side by side, as each addition waits for the one before
constexpr int64_t kChunkFloats = 1 << 13, kLeastRows = 64;  // of a chunk; it leaves two doubles a channel

// Rows of C floats, C a multiple of kLanes. As many of them as fill all sums, end to end, are a line.
struct Rows {
  int64_t matrices, count, channels, line, chunk, chunks;  // a line in floats, a chunk in rows
  explicit Rows(const Array& x) : matrices(1) {
    auto sides = x.dimensions();
    const size_t rank = sides.size();
    for (size_t axis = 0; axis + 2 < rank; ++axis) matrices *= sides[axis];
    count = sides[rank - 2], channels = sides[rank - 1];
    line = std::lcm<int64_t>(channels, kSums * kLanes);
    chunk = std::max(kLeastRows, line / channels * (kChunkFloats / line));
    chunks = (count + chunk - 1) / chunk;
  }
  int64_t in_chunk(int64_t k) const { return std::min(chunk, count - k * chunk); }

  // to[c] = the sum of term(row * C + c, c) over the rows [0, rows). scratch has a line's floats.
  template <typename Term>
  void add_up(int64_t rows, float* scratch, double* to, Term term) const {
    const int64_t lines = rows * channels / line;
    for (int64_t w = 0; w < line; w += kSums * kLanes) {
      Vector sum[kSums] = {};
      for (int64_t i = 0; i < lines; ++i)
#pragma GCC unroll 8
        for (int v = 0; v < kSums; ++v) sum[v] += term(i * line + w + v * kLanes, w + v * kLanes);
      for (int v = 0; v < kSums; ++v) store(scratch + w + v * kLanes, sum[v]);
    }
    for (int64_t c = 0; c < channels; c += kLanes) {
      Vector rest = {};
      for (int64_t place = lines * line + c; place < rows * channels; place += channels) rest += term(place, c);
      for (int l = 0; l < kLanes; ++l) to[c + l] = rest[l];
    }
    for (int64_t w = 0; w < line; w += channels)
      for (int64_t c = 0; c < channels; ++c) to[c] += scratch[w + c];
  }

  // A value for each channel, again and again until the line is full.
  template <typename Value>
  void fill_line(float* to, Value value) const {
    for (int64_t c = 0; c < channels; ++c) to[c] = value(c);
    for (int64_t w = channels; w < line; w += channels) std::copy_n(to, channels, to + w);
  }

  // Two doubles a channel of each chunk, [matrix][chunk][number][channel], by work(its first float's place, its rows,
  // its doubles, two lines of scratch).
  template <typename Work>
  std::vector<double> of_chunks(ffi::ThreadPool& pool, Work work) const {
    std::vector<double> found(matrices * chunks * 2 * channels);
    in_parallel(pool, matrices * chunks, [&](int64_t item) {
      std::vector<float> scratch(2 * line);
      const int64_t matrix = item / chunks, k = item % chunks;
      work((matrix * count + k * chunk) * channels, in_chunk(k), &found[item * 2 * channels], scratch.data());
    });
    return found;
  }
};

// Mean and biased variance of every channel. A chunk is centred before it is squared, near its own mean: what the centre
// is off, as float32 rounds it, is measured and corrected. So a mean that is large against the deviation costs no digits.
ffi::Error Moments(ffi::ThreadPool pool, Array x, Result mean, Result variance) {
  const Rows rows(x);
  const int64_t channels = rows.channels;
  const auto found = rows.of_chunks(pool, [&](int64_t first, int64_t count, double* sums, float* scratch) {
    const float* from = x.typed_data() + first;
    float* centre = scratch + rows.line;
    double *middle = sums, *square = sums + channels;
    rows.add_up(count, scratch, middle, [&](int64_t place, int64_t) { return load(from + place); });
    rows.fill_line(centre, [&](int64_t c) { return middle[c] / count; });
    rows.add_up(count, scratch, middle,
                [&](int64_t place, int64_t w) { return load(from + place) - load(centre + w); });
    rows.add_up(count, scratch, square, [&](int64_t place, int64_t w) {
      const Vector centred = load(from + place) - load(centre + w);
      return centred * centred;
    });
    for (int64_t c = 0; c < channels; ++c) {
      const double off = middle[c] / count;
      middle[c] = centre[c] + off, square[c] -= count * off * off;
    }
  });
  for (int64_t i = 0; i < rows.matrices * channels; ++i) {
    const double* sums = &found[i / channels * rows.chunks * 2 * channels + i % channels];
    double sum = 0, square = 0;
    for (int64_t k = 0; k < rows.chunks; ++k) sum += rows.in_chunk(k) * sums[2 * k * channels];
    const double middle = sum / rows.count;
    for (int64_t k = 0; k < rows.chunks; ++k) {
      const double off = sums[2 * k * channels] - middle;
      square += sums[(2 * k + 1) * channels] + rows.in_chunk(k) * off * off;
    }
    square = square < 0 ? 0 : square;  // NaN stays
    mean->typed_data()[i] = middle, variance->typed_data()[i] = square / rows.count;
  }
  return ffi::Error::Success();
}

// Of every channel the sum of g, and that of g (x - mean).
ffi::Error GradientSums(ffi::ThreadPool pool, Array x, Array g, Array mean, Result sum, Result product) {
  const Rows rows(x);
  const int64_t channels = rows.channels, in_one = rows.count * channels;
  const auto found = rows.of_chunks(pool, [&](int64_t first, int64_t count, double* sums, float* scratch) {
    const float *at = x.typed_data() + first, *gradient = g.typed_data() + first;
    const float* means = mean.typed_data() + first / in_one * channels;
    float* centre = scratch + rows.line;
    rows.fill_line(centre, [&](int64_t c) { return means[c]; });
    rows.add_up(count, scratch, sums, [&](int64_t place, int64_t) { return load(gradient + place); });
    rows.add_up(count, scratch, sums + channels, [&](int64_t place, int64_t w) {
      return load(gradient + place) * (load(at + place) - load(centre + w));
    });
  });
  for (int64_t i = 0; i < rows.matrices * channels; ++i) {
    const double* sums = &found[i / channels * rows.chunks * 2 * channels + i % channels];
    double both[2] = {};
    for (int64_t k = 0; k < 2 * rows.chunks; ++k) both[k % 2] += sums[k * channels];
    sum->typed_data()[i] = both[0], product->typed_data()[i] = both[1];
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(moments, Moments,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Ret<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(gradient_sums, GradientSums,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>());
