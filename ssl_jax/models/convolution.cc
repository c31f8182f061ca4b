// Square convolutions on the CPU in float32, called by XLA through its foreign function interface: images (B, H, W, C),
// kernels (k, k, C, D), padded by k / 2 on all sides. native.py compiles this file; convolution.py says when it is used.
//
// Both gradients and the value are sums of products over (tap, channel) or over pixels. A few pixels (or input
// channels) times a few vectors of outputs are summed in registers at a time: this is what lets the arithmetic run at
// its full rate. What the innermost loops read lies in order and stays in a core's cache.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Array = ffi::BufferR4<ffi::F32>;
using Result = ffi::Result<Array>;

// How many floats a register holds, and how many registers wide a sum is at most: 6 x 4 or 6 x 2 sums fit in 32 or 16.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kWide = 4;
#elif defined(__AVX__)
constexpr int kLanes = 8, kWide = 2;
#else
constexpr int kLanes = 4, kWide = 4;
#endif
typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4)));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }

constexpr int64_t kScratchBytes = 1 << 19;  // padded images that are worked on at a time: a part of a core's cache
constexpr int64_t kPixels = 128;            // pixels whose products are summed before their sum is added to the others

// --- Work on all cores ---------------------------------------------------------------------------------------------

// work(0), ..., work(items - 1), each once, by this thread and whoever of the pool is free. This thread never waits for
// one that has not begun: all of the pool may stand here, in other convolutions, at the same time.
void in_parallel(ffi::ThreadPool& pool, int64_t items, std::function<void(int64_t)> work) {
  struct Shared {
    std::function<void(int64_t)> work;
    int64_t items;
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable finished;
  };
  auto shared = std::make_shared<Shared>();
  shared->work = std::move(work);
  shared->items = items;
  std::function<void()> take = [shared] {
    for (int64_t item; (item = shared->next++) < shared->items;) {
      shared->work(item);
      if (++shared->done == shared->items) {
        std::lock_guard<std::mutex> lock(shared->mutex);
        shared->finished.notify_all();
      }
    }
  };
  for (int64_t i = 1; i < std::min(items, pool.num_threads()); ++i) pool.Schedule(std::function<void()>(take));
  take();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->finished.wait(lock, [&] { return shared->done == items; });
}

int64_t cores(const ffi::ThreadPool& pool) { return std::max<int64_t>(1, pool.num_threads()); }

// --- Images with a border of zeros -----------------------------------------------------------------------------------

struct Images {
  int64_t batch, height, width, channels, border;
  Images(const Array& x, int64_t border) : border(border) {
    auto sides = x.dimensions();
    batch = sides[0], height = sides[1], width = sides[2], channels = sides[3];
  }
  int64_t row() const { return (width + 2 * border) * channels; }
  int64_t size() const { return (height + 2 * border) * row(); }
  // The place of a pixel, counted without the border, in padded images.
  int64_t at(int64_t n, int64_t i, int64_t j) const { return n * size() + (i + border) * row() + (j + border) * channels; }
  // How many fit in the scratch, and leave something to do for every core.
  int64_t group(int64_t shares) const {
    return std::max<int64_t>(1, std::min(kScratchBytes / 4 / size(), batch / shares));
  }
  // Images first, first + 1, ... of x, padded, in memory that the thread keeps.
  const float* padded(const float* x, int64_t first, int64_t count) const {
    static thread_local std::vector<float> scratch;
    if (static_cast<int64_t>(scratch.size()) < count * size()) scratch.resize(count * size());
    float* to = scratch.data();
    const float* from = x + first * height * width * channels;
    for (int64_t n = 0; n < count; ++n) {
      for (int64_t i = -border; i < height + border; ++i) {
        bool outside = i < 0 || i >= height;
        to = std::fill_n(to, outside ? row() : border * channels, 0.f);
        if (outside) continue;
        to = std::copy_n(from, width * channels, to);
        to = std::fill_n(to, border * channels, 0.f);
        from += width * channels;
      }
    }
    return scratch.data();
  }
};

// --- The value, and the gradient by the input -------------------------------------------------------------------------

struct Tap {
  int64_t offset;  // from a pixel's place to the place of what this tap reads, in padded images
  int64_t number;  // of k * k
};

// Some output pixels: where each one's window is centred in the padded images, and where the pixel is to be written.
struct Pixels {
  std::vector<const float*> from;
  std::vector<float*> to;
};

// kRows pixels times kVectors vectors of outputs, over all taps and channels. weights: [k * k][channels][outputs here].
// kDepth channels at a time, so that a pixel's address is fetched once for all of them.
template <int kRows, int kVectors, int kDepth>
void multiply(const float* const* from, float* const* to, const std::vector<Tap>& taps, const float* weights,
              int64_t channels) {
  constexpr int kOutputs = kVectors * kLanes;
  Vector sum[kRows][kVectors] = {};
  for (const Tap& tap : taps) {
    const float* w = weights + tap.number * channels * kOutputs;
    const float* x[kRows];
    for (int r = 0; r < kRows; ++r) x[r] = from[r] + tap.offset;
    int64_t c = 0;
    for (; c + kDepth <= channels; c += kDepth, w += kDepth * kOutputs) {
      Vector row[kDepth][kVectors];
#pragma GCC unroll 8
      for (int e = 0; e < kDepth; ++e)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) row[e][v] = load(w + e * kOutputs + v * kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
        for (int e = 0; e < kDepth; ++e)
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) sum[r][v] += x[r][c + e] * row[e][v];
    }
    for (; c < channels; ++c, w += kOutputs)
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[r][v] += x[r][c] * load(w + v * kLanes);
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) store(to[r] + v * kLanes, sum[r][v]);
}

template <int kRows, int kVectors, int kDepth>
void multiply_all(Pixels pixels, const std::vector<Tap>& taps, const float* packed, int64_t entries, int64_t channels,
                  int64_t outputs) {
  while (pixels.from.size() % kRows) {  // the last one once more, to the same place
    pixels.from.push_back(pixels.from.back());
    pixels.to.push_back(pixels.to.back());
  }
  for (int64_t d = 0; d < outputs; d += kVectors * kLanes) {
    for (size_t p = 0; p < pixels.from.size(); p += kRows)
      multiply<kRows, kVectors, kDepth>(&pixels.from[p], &pixels.to[p], taps, packed + d * entries, channels);
    for (float*& to : pixels.to) to += kVectors * kLanes;
  }
}

// The widest sum, in vectors, that divides the outputs.
int64_t vectors_for(int64_t outputs) {
  for (int64_t vectors : {kWide, 2})
    if (outputs % (vectors * kLanes) == 0) return vectors;
  return 1;
}

// transposed: the gradient by the input, from x = the output's gradient (B, H / stride, W / stride, D) and the kernel
// as it is, (k, k, C, D). With stride s the input's pixels fall into s x s classes, each of which met its own taps.
ffi::Error Correlate(ffi::ThreadPool pool, Array x, Array kernel, Result y, int64_t stride, bool transposed) {
  const int64_t size = kernel.dimensions()[0], taps_in_all = size * size, border = size / 2;
  const Images images(x, border);
  const int64_t channels = images.channels;
  const int64_t height = y->dimensions()[1], width = y->dimensions()[2], outputs = y->dimensions()[3];
  const int64_t entries = taps_in_all * channels, vectors = vectors_for(outputs), together = vectors * kLanes;
  const float *from = x.typed_data(), *weights = kernel.typed_data();
  float* to = y->typed_data();

  // Weights in the order in which they are read: [outputs / together][tap][channel][together].
  std::unique_ptr<float[]> memory(new float[entries * outputs]);
  float* packed = memory.get();
  in_parallel(pool, outputs / together, [=](int64_t slice) {
    float* next = packed + slice * together * entries;
    for (int64_t tap = 0; tap < taps_in_all; ++tap)
      for (int64_t c = 0; c < channels; ++c, next += together)
        for (int64_t e = 0; e < together; ++e) {
          int64_t d = slice * together + e;
          next[e] = weights[tap * channels * outputs + (transposed ? d * channels + c : c * outputs + d)];
        }
  });

  const int64_t classes = transposed ? stride : 1, group = images.group(cores(pool));
  in_parallel(pool, (images.batch + group - 1) / group, [=](int64_t item) {
    const int64_t first = item * group, count = std::min(group, images.batch - first);
    const float* padded = images.padded(from, first, count);
    for (int64_t a = 0; a < classes; ++a)
      for (int64_t b = 0; b < classes; ++b) {
        std::vector<Tap> taps;
        for (int64_t tap = 0; tap < taps_in_all; ++tap) {
          int64_t i = tap / size - border, j = tap % size - border;
          if (transposed) i = a - i, j = b - j;
          if (transposed && (i % stride || j % stride)) continue;
          if (transposed) i /= stride, j /= stride;
          taps.push_back({i * images.row() + j * channels, tap});
        }
        Pixels pixels;
        for (int64_t n = 0; n < count; ++n)
          for (int64_t i = a; i < height; i += classes)
            for (int64_t j = b; j < width; j += classes) {
              int64_t u = transposed ? i / stride : i * stride, v = transposed ? j / stride : j * stride;
              pixels.from.push_back(padded + images.at(n, u, v));
              pixels.to.push_back(to + (((first + n) * height + i) * width + j) * outputs);
            }
        if (vectors == 1) multiply_all<8, 1, 8>(pixels, taps, packed, entries, channels, outputs);
        else if (vectors < kWide) multiply_all<12, 2, 2>(pixels, taps, packed, entries, channels, outputs);
        else multiply_all<6, kWide, 1>(pixels, taps, packed, entries, channels, outputs);
      }
  });
  return ffi::Error::Success();
}

// --- The gradient by the kernel -----------------------------------------------------------------------------------------

// Rows of pixels: where each begins in the padded images, and in the output's gradient.
struct Rows {
  std::vector<const float*> x, gradient;
};

// kInputs channels times kVectors vectors of outputs, added to `to`: the sum over rows [begin, end) and their pixels.
template <int kInputs, int kVectors>
void accumulate(const Rows& rows, size_t begin, size_t end, int64_t width, int64_t step, int64_t offset, int64_t d,
                int64_t outputs, float* to) {
  Vector sum[kInputs][kVectors] = {};
  for (size_t r = begin; r < end; ++r) {
    const float *x = rows.x[r] + offset, *g = rows.gradient[r] + d;
    for (int64_t j = 0; j < width; ++j, x += step, g += outputs) {
      Vector row[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) row[v] = load(g + v * kLanes);
#pragma GCC unroll 16
      for (int q = 0; q < kInputs; ++q)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[q][v] += x[q] * row[v];
    }
  }
  for (int q = 0; q < kInputs; ++q)
    for (int v = 0; v < kVectors; ++v) {
      float* place = to + q * outputs + v * kLanes;
      store(place, load(place) + sum[q][v]);
    }
}

// All input channels of one tap, kInputs at a time and the rest one by one.
template <int kInputs, int kVectors>
void accumulate_all(const Rows& rows, size_t begin, size_t end, int64_t width, int64_t step, int64_t offset, int64_t d,
                    int64_t channels, int64_t outputs, float* to) {
  int64_t c = 0;
  for (; c + kInputs <= channels; c += kInputs)
    accumulate<kInputs, kVectors>(rows, begin, end, width, step, offset + c, d, outputs, to + c * outputs);
  for (; c < channels; ++c)
    accumulate<1, kVectors>(rows, begin, end, width, step, offset + c, d, outputs, to + c * outputs);
}

// Every core sums over its own share of the images; the shares are then added in order, so that a machine always
// rounds alike.
ffi::Error KernelGradient(ffi::ThreadPool pool, Array x, Array gradient, Result result, int64_t stride) {
  const int64_t size = result->dimensions()[0], border = size / 2;
  const Images images(x, border);
  const int64_t channels = images.channels, batch = images.batch, step = stride * channels;
  const int64_t height = gradient.dimensions()[1], width = gradient.dimensions()[2], outputs = gradient.dimensions()[3];
  const int64_t entries = size * size * channels * outputs, shares = std::min(batch, cores(pool));
  const float *from = x.typed_data(), *gradients = gradient.typed_data();
  float* to = result->typed_data();
  std::unique_ptr<float[]> memory(new float[(shares - 1) * entries]);
  float* others = memory.get();

  const size_t together = std::max<int64_t>(1, kPixels / width);
  in_parallel(pool, shares, [=](int64_t share) {
    float* sum = share ? others + (share - 1) * entries : to;
    std::fill_n(sum, entries, 0.f);
    const int64_t end = batch * (share + 1) / shares, group = images.group(shares);
    for (int64_t first = batch * share / shares; first < end; first += group) {
      const int64_t count = std::min(group, end - first);
      const float* padded = images.padded(from, first, count);
      Rows rows;
      for (int64_t n = 0; n < count; ++n)
        for (int64_t i = 0; i < height; ++i) {
          rows.x.push_back(padded + images.at(n, i * stride, 0));
          rows.gradient.push_back(gradients + ((first + n) * height + i) * width * outputs);
        }
      for (size_t r = 0; r < rows.x.size(); r += together) {
        const size_t last = std::min(r + together, rows.x.size());
        for (int64_t d = 0; d < outputs; d += outputs - d >= 2 * kLanes ? 2 * kLanes : kLanes)
          for (int64_t tap = 0; tap < size * size; ++tap) {
            const int64_t offset = (tap / size - border) * images.row() + (tap % size - border) * channels;
            float* place = sum + tap * channels * outputs + d;
            if (outputs - d < 2 * kLanes)
              accumulate_all<16, 1>(rows, r, last, width, step, offset, d, channels, outputs, place);
            else if (kLanes == 8)
              accumulate_all<6, 2>(rows, r, last, width, step, offset, d, channels, outputs, place);
            else
              accumulate_all<8, 2>(rows, r, last, width, step, offset, d, channels, outputs, place);
          }
      }
    }
  });
  in_parallel(pool, shares, [=](int64_t share) {
    for (int64_t other = 0; other + 1 < shares; ++other)
      for (int64_t e = entries * share / shares; e < entries * (share + 1) / shares; ++e)
        to[e] += others[other * entries + e];
  });
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(correlate, Correlate,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("stride")
                                  .Attr<bool>("transposed"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(kernel_gradient, KernelGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("stride"));
