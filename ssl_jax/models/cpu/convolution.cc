// Square convolutions on the CPU in float32, called by XLA through its foreign function interface: images (B, H, W, C),
// kernels (k, k, C, D), padded by k / 2 on all sides. native.py compiles this file, convolution.py uses it.
//
// Both gradients and the value are sums of products over (tap, channel) or over pixels. A few pixels (or input
// channels) times a few vectors of outputs are summed in registers at a time: this is what lets the arithmetic run at
// its full rate. What the innermost loops read lies in order and stays in a core's cache.

#include "common.h"

namespace {

using Array = ffi::BufferR4<ffi::F32>;
using Result = ffi::Result<Array>;

constexpr int64_t kScratchBytes = 1 << 19;  // padded images that are worked on at a time: a part of a core's cache
constexpr int64_t kPixels = 128;            // pixels whose products are summed before their sum is added to the others
constexpr int64_t kMostShares = 16;         // sums over images that are held at a time: each up to 4 times the kernel
constexpr int64_t kPastCaches = 1 << 21;    // least number of floats of an array that is written past the caches
constexpr int64_t kShareTiles = 32;         // least number of a share's tiles that are worth a sum of 4 times the kernel

// --- Images with a border of zeros ---------------------------------------------------------------------------------

struct Images {
  int64_t batch, height, width, channels, border;
  Images(const Array& x, int64_t border) : border(border) {
    auto sides = x.dimensions();
    batch = sides[0], height = sides[1], width = sides[2], channels = sides[3];
  }
  int64_t row() const { return (width + 2 * border) * channels; }
  int64_t size() const { return (height + 2 * border) * row(); }
  // The place of a pixel, counted without the border, in padded images.
  int64_t at(int64_t n, int64_t i, int64_t j) const {
    return n * size() + (i + border) * row() + (j + border) * channels;
  }
  // How many fit in the scratch, and leave something to do for every core.
  int64_t group(int64_t shares) const {
    return std::max<int64_t>(1, std::min(kScratchBytes / 4 / size(), batch / shares));
  }
  // Images first, first + 1, ... of x, padded, in memory that the thread keeps; x itself where there is no border.
  const float* padded(const float* x, int64_t first, int64_t count) const {
    if (border == 0) return x + first * size();
    static thread_local Floats scratch;
    float* to = scratch.make_room(count * size());
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
    return scratch.get();
  }
};

// --- The value, and the gradient by the input ----------------------------------------------------------------------

struct Tap {
  int64_t offset;  // from where a window is centred to what this tap reads there
  int64_t number;  // which of the weights' matrices (channels x outputs) it is multiplied by
};

// Some output pixels: where each one's window is centred in what is read, and where the pixel is to be written.
struct Pixels {
  std::vector<int64_t> from, to;
};

// Matrices of weights in the order in which they are read: [slice of the outputs][number][channel][output in it].
// A slice is as many vectors wide as a sum can be and divides the outputs. A vector between the matrices keeps the same
// places of all of them out of the same sets of a cache.
struct Weights {
  int64_t numbers, channels, outputs, vectors;
  Floats memory;
  Weights(int64_t numbers, int64_t channels, int64_t outputs) : numbers(numbers), channels(channels), outputs(outputs) {
    for (vectors = kWide; outputs % (vectors * kLanes); vectors /= 2) continue;
    memory.make_room(outputs / slice() * numbers * matrix(channels, slice()));
  }
  static int64_t matrix(int64_t channels, int64_t slice) { return channels * slice + kLanes; }
  int64_t slice() const { return vectors * kLanes; }
  float* at(int64_t number, int64_t channel, int64_t output) const {
    int64_t before = output / slice() * numbers + number;
    return &memory[before * matrix(channels, slice()) + channel * slice() + output % slice()];
  }
};

// kRows pixels times kVectors vectors of outputs, over all taps and channels. kDepth channels at a time, so that a
// pixel's address is fetched once for all of them.
template <int kRows, int kVectors, int kDepth>
void multiply(const float* const* from, float* const* to, const std::vector<Tap>& taps, const float* weights,
              int64_t channels, int64_t apart) {
  constexpr int kOutputs = kVectors * kLanes;
  Vector sum[kRows][kVectors] = {};
  for (const Tap& tap : taps) {
    const float* w = weights + tap.number * Weights::matrix(channels, kOutputs);
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
    for (int v = 0; v < kVectors; ++v) store(to[r] + v * apart, sum[r][v]);
}

template <int kRows, int kVectors, int kDepth>
void multiply_all(const float* from, float* to, const Pixels& pixels, int64_t count, const std::vector<Tap>& taps,
                  const Weights& weights, int64_t apart) {
  for (int64_t d = 0; d < weights.outputs; d += weights.slice())
    for (int64_t p = 0; p < count; p += kRows) {
      const float* x[kRows];
      float* y[kRows];
      for (int r = 0; r < kRows; ++r) {  // at the end the last pixel once more, to the same place
        x[r] = from + pixels.from[std::min(p + r, count - 1)];
        y[r] = to + pixels.to[std::min(p + r, count - 1)] + d / kLanes * apart;
      }
      multiply<kRows, kVectors, kDepth>(x, y, taps, weights.at(0, 0, d), weights.channels, apart);
    }
}

// The first `count` of the pixels, all outputs, whose vectors are written `apart`: sums of 6 x 4, 6 x 2, 12 x 2 or 8 x 1
// vectors.
void multiply_all(const float* from, float* to, const Pixels& pixels, int64_t count, const std::vector<Tap>& taps,
                  const Weights& weights, int64_t apart) {
  auto narrow = weights.vectors == 1 ? multiply_all<8, 1, 8> : multiply_all<12, 2, 2>;
  (weights.vectors == kWide ? multiply_all<6, kWide, 1> : narrow)(from, to, pixels, count, taps, weights, apart);
}

// Rows of kLanes channels, one after the other, times a square of weights that registers hold: kRows at a time, from
// `row` on. The row that is next.
template <int kRows>
int64_t multiply_square(const float* from, float* to, int64_t row, int64_t count, const Vector* weights) {
  for (; row + kRows <= count; row += kRows) {
    Vector sum[kRows] = {};
#pragma GCC unroll 16
    for (int c = 0; c < kLanes; ++c)
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sum[r] += from[(row + r) * kLanes + c] * weights[c];
    for (int r = 0; r < kRows; ++r) store(to + (row + r) * kLanes, sum[r]);
  }
  return row;
}

void multiply_square(const float* from, float* to, int64_t count, const float* weights) {
  Vector square[kLanes];
#pragma GCC unroll 16
  for (int c = 0; c < kLanes; ++c) square[c] = load(weights + c * kLanes);
  multiply_square<1>(from, to, multiply_square<8>(from, to, 0, count, square), count, square);
}

// --- Winograd's form -----------------------------------------------------------------------------------------------

// F(m x m, 3x3) of Lavin and Gray 2016 (arXiv 1509.09308), section 4: a tile of m x m outputs is
// A' [(G k G') o (B' x B)] A of the kernel k and the (m + 2) x (m + 2) inputs x around it. Summed over channels that is
// one matrix product for each of the (m + 2)^2 places: 2.25 times fewer multiplications than by the definition with
// m = 2, 4 times with m = 4. ' is the transpose. Every matrix is a function here, of vectors that are s apart.
//
// A form says of a row of a tile: kIn pixels are read, kBefore and kBehind of them (none or one) beside its own; kAcross
// places are made of them, which have kWeights different weights; kOut pixels are written. kStride is the stride of the
// convolution that it serves, kRoom the most tiles that are worked on together.

// By the points 0, 1, -1 and infinity: their section 4.1.
struct TwoByTwo {
  static constexpr int kStride = 1, kIn = 4, kBefore = 1, kBehind = 1, kAcross = 4, kOut = 2, kWeights = 4, kRoom = 72;

  static void spread_input(const Vector* x, int s, Vector* y) {  // B'
    y[0] = x[0] - x[2 * s], y[1] = x[s] + x[2 * s], y[2] = x[2 * s] - x[s], y[3] = x[s] - x[3 * s];
  }
  static void gather_output(const Vector* x, int s, Vector* y) {  // A'
    y[0] = x[0] + x[s] + x[2 * s], y[1] = x[s] - x[2 * s] - x[3 * s];
  }
  static void spread_gradient(const Vector* x, int s, Vector* y) {  // A
    y[0] = x[0], y[1] = x[0] + x[s], y[2] = x[0] - x[s], y[3] = -x[s];
  }
  static void spread_kernel(const Vector* x, int s, Vector* y) {  // G
    Vector even = .5f * (x[0] + x[2 * s]), odd = .5f * x[s];
    y[0] = x[0], y[1] = even + odd, y[2] = even - odd, y[3] = x[2 * s];
  }
  static void gather_kernel(const Vector* x, int s, Vector* y) {  // G'
    Vector even = .5f * (x[s] + x[2 * s]), odd = .5f * (x[s] - x[2 * s]);
    y[0] = x[0] + even, y[1] = odd, y[2] = even + x[3 * s];
  }
};

// By the points 0, 1/r, -1/r, r, -r and infinity, r the root of 2: by the usual 1, -1, 2 and -2 the numbers in the
// matrices are larger, and so are the errors.
struct FourByFour {
  static constexpr int kStride = 1, kIn = 6, kBefore = 1, kBehind = 1, kAcross = 6, kOut = 4, kWeights = 6, kRoom = 72;
  static constexpr float kRoot = 1.41421356237f;

  static void spread_input(const Vector* x, int s, Vector* y) {  // B'
    Vector even = x[4 * s] - 2.f * x[2 * s], odd = (.5f * kRoot) * x[3 * s] - kRoot * x[s];
    Vector other_even = x[4 * s] - .5f * x[2 * s], other_odd = kRoot * x[3 * s] - (.5f * kRoot) * x[s];
    y[0] = x[0] - 2.5f * x[2 * s] + x[4 * s], y[1] = even + odd, y[2] = even - odd;
    y[3] = other_even + other_odd, y[4] = other_even - other_odd, y[5] = x[s] - 2.5f * x[3 * s] + x[5 * s];
  }
  static void gather_output(const Vector* x, int s, Vector* y) {  // A'
    Vector even = x[s] + x[2 * s], odd = kRoot * (x[s] - x[2 * s]);
    Vector other_even = x[3 * s] + x[4 * s], other_odd = kRoot * (x[3 * s] - x[4 * s]);
    y[0] = x[0] + even + other_even, y[1] = .5f * odd + other_odd;
    y[2] = .5f * even + 2.f * other_even, y[3] = .25f * odd + 2.f * other_odd + x[5 * s];
  }
  static void spread_gradient(const Vector* x, int s, Vector* y) {  // A
    Vector even = x[0] + .5f * x[2 * s], odd = (.5f * kRoot) * x[s] + (.25f * kRoot) * x[3 * s];
    Vector other_even = x[0] + 2.f * x[2 * s], other_odd = kRoot * x[s] + (2.f * kRoot) * x[3 * s];
    y[0] = x[0], y[1] = even + odd, y[2] = even - odd;
    y[3] = other_even + other_odd, y[4] = other_even - other_odd, y[5] = x[3 * s];
  }
  static void spread_kernel(const Vector* x, int s, Vector* y) {  // G
    Vector even = (-2 / 3.f) * x[0] - (1 / 3.f) * x[2 * s], odd = (-kRoot / 3) * x[s];
    Vector other_even = (1 / 6.f) * x[0] + (1 / 3.f) * x[2 * s], other_odd = (kRoot / 6) * x[s];
    y[0] = x[0], y[1] = even + odd, y[2] = even - odd;
    y[3] = other_even + other_odd, y[4] = other_even - other_odd, y[5] = x[2 * s];
  }
  static void gather_kernel(const Vector* x, int s, Vector* y) {  // G'
    Vector even = (1 / 3.f) * (x[s] + x[2 * s]), odd = (kRoot / 3) * (x[s] - x[2 * s]);
    Vector other_even = (1 / 6.f) * (x[3 * s] + x[4 * s]), other_odd = (kRoot / 6) * (x[3 * s] - x[4 * s]);
    y[0] = x[0] - 2.f * even + other_even, y[1] = other_odd - odd, y[2] = 2.f * other_even - even + x[5 * s];
  }
};

// With stride 2 the first and last weight of a row meet the pixels between which the outputs lie, as a kernel of two,
// and the middle one those where they lie, by itself. So 4 outputs take 9 products in place of 12: 4 with the middle
// weight, at places 0, 6, 7 and 8, and at the others those of F(4, 2), by the points of FourByFour without 0.
struct Strided {
  static constexpr int kStride = 2, kIn = 9, kBefore = 1, kBehind = 0, kAcross = 9, kOut = 4, kWeights = 6, kRoom = 36;
  static constexpr float kRoot = FourByFour::kRoot;

  // What F(4, 2) makes of 5 pixels.
  static void spread_between(const Vector* x, int s, Vector* y) {
    Vector even = (.5f * kRoot) * x[2 * s] - kRoot * x[0], odd = x[3 * s] - 2.f * x[s];
    Vector other_even = kRoot * x[2 * s] - (.5f * kRoot) * x[0], other_odd = x[3 * s] - .5f * x[s];
    y[0] = odd + even, y[1] = odd - even, y[2] = other_odd + other_even, y[3] = other_odd - other_even;
    y[4] = x[0] - 2.5f * x[2 * s] + x[4 * s];
  }
  static void spread_input(const Vector* x, int s, Vector* y) {
    spread_between(x, 2 * s, y + 1);
    y[0] = x[s], y[6] = x[3 * s], y[7] = x[5 * s], y[8] = x[7 * s];
  }
  static void gather_output(const Vector* x, int s, Vector* y) {
    FourByFour::gather_output(x, s, y);
    y[1] += x[6 * s], y[2] += x[7 * s], y[3] += x[8 * s];
  }
  static void spread_gradient(const Vector* x, int s, Vector* y) {
    FourByFour::spread_gradient(x, s, y);
    y[6] = x[s], y[7] = x[2 * s], y[8] = x[3 * s];
  }
  static void spread_kernel(const Vector* x, int s, Vector* y) {
    Vector first = (kRoot / 3) * x[0], last = (1 / 3.f) * x[2 * s];
    y[0] = x[s], y[1] = -first - last, y[2] = first - last;
    y[3] = .5f * first + last, y[4] = last - .5f * first, y[5] = x[2 * s];
  }
  static void gather_kernel(const Vector* x, int s, Vector* y) {
    y[0] = (kRoot / 3) * (x[2 * s] - x[s]) + (kRoot / 6) * (x[3 * s] - x[4 * s]), y[1] = x[0];
    y[2] = (1 / 3.f) * (x[3 * s] + x[4 * s] - x[s] - x[2 * s]) + x[5 * s];
  }
};

// The gradient by the input: a pixel where an output lies takes the middle weight alone, one between two of them the
// others.
struct StridedBack : Strided {
  static constexpr int kIn = 5, kBefore = 0, kBehind = 1, kOut = 8;

  static void spread_input(const Vector* x, int s, Vector* y) {
    spread_between(x, s, y + 1);
    y[0] = x[0], y[6] = x[s], y[7] = x[2 * s], y[8] = x[3 * s];
  }
  static void gather_output(const Vector* x, int s, Vector* y) {
    const Vector points[6] = {Vector{}, x[s], x[2 * s], x[3 * s], x[4 * s], x[5 * s]};
    Vector between[4];
    FourByFour::gather_output(points, 1, between);
    y[0] = x[0], y[2] = x[6 * s], y[4] = x[7 * s], y[6] = x[8 * s];
    y[1] = between[0], y[3] = between[1], y[5] = between[2], y[7] = between[3];
  }
};

template <typename Form>
constexpr int kPlaces = Form::kAcross * Form::kAcross;
template <typename Form>
constexpr int kSide = Form::kIn - Form::kBefore - Form::kBehind;  // the side of a tile, in pixels of what is read

// Which of the kWeights x kWeights numbers of a kernel belongs to a place.
template <typename Form>
constexpr int weight(int place) {
  const int i = place / Form::kAcross, j = place % Form::kAcross, n = Form::kWeights;
  return (i < n ? i : 0) * n + (j < n ? j : 0);
}

// T x T' for a kIn x kIn tile x of vectors, T a function that makes kOut of kIn.
template <auto transform, int kIn, int kOut, typename Load, typename Store>
[[gnu::always_inline]] inline void both_ways(Load load_from, Store store_to) {
  Vector half[kIn * kOut];
#pragma GCC unroll 9
  for (int i = 0; i < kIn; ++i) {
    Vector in[kIn];
#pragma GCC unroll 9
    for (int j = 0; j < kIn; ++j) in[j] = load_from(i, j);
    transform(in, 1, half + i * kOut);
  }
#pragma GCC unroll 9
  for (int j = 0; j < kOut; ++j) {
    Vector out[kOut];
    transform(half + j, kOut, out);
#pragma GCC unroll 9
    for (int i = 0; i < kOut; ++i) store_to(i, j, out[i]);
  }
}

// The tiles of a batch of images, one after the other.
struct Tiles {
  int64_t batch, height, width, side;
  int64_t in_one() const { return height * width / (side * side); }
  int64_t all() const { return batch * in_one(); }
  int64_t top(int64_t t) const { return t % in_one() / (width / side) * side; }
  int64_t left(int64_t t) const { return t % (width / side) * side; }
  // The first pixel, counted through all images.
  int64_t pixel(int64_t t) const { return (t / in_one() * height + top(t)) * width + left(t); }
};

// The numbers of some tiles: a block for each vector of channels, in it [place][tile][kLanes]. All distances within a
// block are known when this is compiled.
template <typename Form>
constexpr int64_t kPlace = Form::kRoom * kLanes;
template <typename Form>
constexpr int64_t kBlock = kPlaces<Form> * kPlace<Form>;

// Calls work(channels). One vector's channels, those of the narrowest and fastest layers, are a constant there, so that
// all distances within an image are known as well.
template <typename Work>
void with_channels(int64_t channels, Work work) {
  channels == kLanes ? work(std::integral_constant<int64_t, kLanes>()) : work(channels);
}

// The kIn x kIn pixels of each of `count` tiles, kBefore and kBehind of a row beside its own, to blocks. zeros: kIn
// pixels for what lies outside of the image. The pixels of the tile that is `ahead` are asked for, to be in the cache
// when its turn comes.
template <typename Form, auto transform, int kIn, int kBefore, int kBehind>
void to_blocks(const Tiles& tiles, int64_t first, int64_t count, int64_t ahead, int64_t all_channels, const float* from,
               const float* zeros, float* to) {
  constexpr int kAcross = Form::kAcross, kOwn = kIn - kBefore - kBehind;
  with_channels(all_channels, [&](auto channels) {
    const int64_t row = tiles.width * channels;
    for (int64_t t = first; t < first + count; ++t) {
      const int64_t top = tiles.top(t), left = tiles.left(t);
      const float* corner = from + tiles.pixel(t) * channels;
      const float* soon = t + ahead < tiles.all() ? from + tiles.pixel(t + ahead) * channels : corner;
      const float *own[kIn], *before[kIn], *behind[kIn];  // in each row: the tile's own pixels, and those beside
      for (int i = 0; i < kIn; ++i) {
        const bool outside = i < kBefore - top || top + i - kBefore >= tiles.height;
        own[i] = outside ? zeros : corner + (i - kBefore) * row;
        before[i] = outside || left == 0 ? zeros : own[i] - kBefore * channels;
        behind[i] = outside || left + kOwn == tiles.width ? zeros : own[i] + kOwn * channels;
      }
      float* block = to + (t - first) * kLanes;
      for (int64_t c = 0; c < channels; c += kLanes, block += kBlock<Form>) {
        if (c * 4 % kLine == 0) {
#pragma GCC unroll 8
          for (int i = 0; i < kOwn; ++i)
#pragma GCC unroll 8
            for (int j = 0; j < kOwn; ++j) __builtin_prefetch(soon + i * row + j * channels + c, 0, 2);
        }
        both_ways<transform, kIn, kAcross>(
            [&](int i, int j) {
              if (j < kBefore) return load(before[i] + c);
              if (j >= kBefore + kOwn) return load(behind[i] + c);
              return load(own[i] + (j - kBefore) * channels + c);
            },
            [&](int i, int j, Vector value) { store(block + (i * kAcross + j) * kPlace<Form>, value); });
      }
    }
  });
}

// Back from blocks to the kOut x kOut pixels of each tile.
template <typename Form>
void from_blocks(const Tiles& tiles, int64_t first, int64_t count, int64_t all_channels, const float* from, float* to) {
  constexpr int kAcross = Form::kAcross, kOut = Form::kOut;
  // Channels are whole vectors: where the first pixel is a line of the cache, every one is.
  const bool lines = sizeof(Vector) == kLine && reinterpret_cast<uintptr_t>(to) % kLine == 0;
  const bool past = lines && tiles.batch * tiles.height * tiles.width * all_channels >= kPastCaches;
  const auto write = [&](auto channels, auto store_to) {
    const int64_t row = tiles.width * channels;
    for (int64_t t = first; t < first + count; ++t) {
      float* corner = to + tiles.pixel(t) * channels;
      const float* block = from + (t - first) * kLanes;
      for (int64_t c = 0; c < channels; c += kLanes, block += kBlock<Form>)
        both_ways<Form::gather_output, kAcross, kOut>(
            [&](int i, int j) { return load(block + (i * kAcross + j) * kPlace<Form>); },
            [&](int i, int j, Vector value) { store_to(corner + i * row + j * channels + c, value); });
    }
  };
  with_channels(all_channels, [&](auto channels) {
    if (past)
      write(channels, [](float* place, Vector value) { store_past(place, value); }), finish_stores();
    else
      write(channels, [](float* place, Vector value) { store(place, value); });
  });
}

// Memory that the thread keeps.
float* scratch(int which, int64_t size) {
  static thread_local Floats memory[2];
  return memory[which].make_room(size);
}

// One vector to one vector, of 16 channels: native.py asks for no fewer.
bool is_square(const Images& images, int64_t outputs) {
  return kLanes == 16 && images.channels == kLanes && outputs == kLanes;
}

// Fewer than 32 channels or outputs lose more by the transforms than the products gain, unless both are one vector.
template <typename Form>
bool suits(const Images& images, int64_t size, int64_t stride, int64_t outputs) {
  return size == 3 && stride == Form::kStride && images.height % kSide<Form> == 0 && images.width % kSide<Form> == 0 &&
         images.channels % kLanes == 0 && (is_square(images, outputs) || std::min(images.channels, outputs) >= 32);
}

// How many tiles are worked on at a time: by F(4x4, 3x3) so few that all of their places stay in a core's second cache
// (2 MB: up to some 200 channels), but with more channels enough to be worth the reading of their weights.
template <typename Form>
int64_t tiles_together(const Images& images, int64_t outputs) {
  const bool few = std::is_same_v<Form, FourByFour> && std::max(images.channels, outputs) <= 256;
  return few ? Form::kRoom / 2 : Form::kRoom;
}
constexpr int64_t kSquareTiles = 8;  // the same with weights in registers, for the nearest cache

template <typename Form>
void winograd(ffi::ThreadPool& pool, const Images& images, const float* from, const float* kernel, float* to,
              int64_t height, int64_t width, int64_t outputs, bool transposed) {
  constexpr int kWeights = Form::kWeights;
  const int64_t channels = images.channels, blocks = channels / kLanes;
  const Weights weights(kWeights * kWeights * blocks, kLanes, outputs);  // of each weight the blocks of channels in order
  in_parallel(pool, outputs / kLanes, [&](int64_t vector) {
    const int64_t d = vector * kLanes;
    for (int64_t c = 0; c < channels; ++c) {
      both_ways<Form::spread_kernel, 3, kWeights>(
          [&](int i, int j) {
            if (!transposed) return load(kernel + ((i * 3 + j) * channels + c) * outputs + d);
            Vector turned;  // the same convolution, with the kernel turned round
            for (int l = 0; l < kLanes; ++l) turned[l] = kernel[((8 - i * 3 - j) * outputs + d + l) * channels + c];
            return turned;
          },
          [&](int i, int j, Vector value) {
            store(weights.at((i * kWeights + j) * blocks + c / kLanes, c % kLanes, d), value);
          });
    }
  });
  const bool square = is_square(images, outputs);
  const int64_t together = square ? kSquareTiles : tiles_together<Form>(images, outputs);
  const Tiles read{images.batch, images.height, images.width, kSide<Form>};
  const Tiles written{images.batch, height, width, Form::kOut};
  const std::vector<float> zeros(Form::kIn * channels);
  Pixels rows;  // of a matrix of as many rows
  for (int64_t t = 0; t < together; ++t) rows.from.push_back(t * kLanes), rows.to.push_back(t * kLanes);
  std::vector<std::vector<Tap>> taps(kPlaces<Form>);
  for (int k = 0; k < kPlaces<Form>; ++k)
    for (int64_t b = 0; b < blocks; ++b)
      taps[k].push_back({b * kBlock<Form> + k * kPlace<Form>, weight<Form>(k) * blocks + b});
  // As many items as there are cores, or twice, ...: cores that are alike end together.
  const int64_t round = together * cores(pool), items = (read.all() + round - 1) / round * cores(pool);
  in_parallel(pool, items, [&](int64_t item) {
    const int64_t first = read.all() * item / items, count = read.all() * (item + 1) / items - first;
    float *spread = scratch(0, blocks * kBlock<Form>), *products = scratch(1, outputs / kLanes * kBlock<Form>);
    const int64_t ahead = cores(pool) * count;  // this core's next item, if all of them take turns
    to_blocks<Form, Form::spread_input, Form::kIn, Form::kBefore, Form::kBehind>(
        read, first, count, ahead, channels, from, zeros.data(), spread);
    for (int k = 0; k < kPlaces<Form>; ++k) {
      float* product = products + k * kPlace<Form>;
      if (square)
        multiply_square(spread + k * kPlace<Form>, product, count, weights.at(weight<Form>(k), 0, 0));
      else
        multiply_all(spread, product, rows, count, taps[k], weights, kBlock<Form>);
    }
    from_blocks<Form>(written, first, count, outputs, products, to);
  });
}

// --- By the definition ---------------------------------------------------------------------------------------------

// With stride s the pixels of a gradient by the input fall into s x s classes, each of which met its own taps.
void direct(ffi::ThreadPool& pool, const Images& images, const float* from, const float* kernel, float* to,
            int64_t size, int64_t stride, int64_t height, int64_t width, int64_t outputs, bool transposed) {
  // What a window reads in one row lies in order, as all of its taps' channels. A gradient by the input takes tap by tap.
  const int64_t border = images.border, across = transposed ? 1 : size, numbers = size * size / across;
  const int64_t channels = across * images.channels;
  const Weights weights(numbers, channels, outputs);
  in_parallel(pool, outputs / weights.slice(), [&](int64_t slice) {
    for (int64_t tap = 0; tap < numbers; ++tap)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t d = slice * weights.slice(), end = d + weights.slice(); d < end; ++d)
          *weights.at(tap, c, d) =
              kernel[tap * channels * outputs + (transposed ? d * channels + c : c * outputs + d)];
  });
  const int64_t classes = transposed ? stride : 1, group = images.group(cores(pool));
  std::vector<std::vector<Tap>> taps(classes * classes);
  std::vector<Pixels> pixels(classes * classes);  // of `group` images
  for (int64_t a = 0; a < classes; ++a)
    for (int64_t b = 0; b < classes; ++b) {
      for (int64_t tap = 0; tap < numbers; ++tap) {
        int64_t i = tap * across / size - border, j = tap * across % size - border;
        if (transposed) i = a - i, j = b - j;
        if (transposed && (i % stride || j % stride)) continue;
        if (transposed) i /= stride, j /= stride;
        taps[a * classes + b].push_back({i * images.row() + j * images.channels, tap});
      }
      Pixels& of_class = pixels[a * classes + b];
      for (int64_t n = 0; n < group; ++n)
        for (int64_t i = a; i < height; i += classes)
          for (int64_t j = b; j < width; j += classes) {
            int64_t u = transposed ? i / stride : i * stride, v = transposed ? j / stride : j * stride;
            of_class.from.push_back(images.at(n, u, v));
            of_class.to.push_back(((n * height + i) * width + j) * outputs);
          }
    }
  in_parallel(pool, (images.batch + group - 1) / group, [&](int64_t item) {
    const int64_t first = item * group, count = std::min(group, images.batch - first);
    const float* padded = images.padded(from, first, count);
    float* y = to + first * height * width * outputs;
    for (int64_t k = 0; k < classes * classes; ++k)
      multiply_all(padded, y, pixels[k], pixels[k].from.size() / group * count, taps[k], weights, kLanes);
  });
}

// The value, from x (B, H, W, C) and kernel (k, k, C, D) to (B, H / stride, W / stride, D). transposed: the gradient by
// the input, from that of the output (B, h, w, D) and the same kernel to (B, stride h, stride w, C).
ffi::Error Correlate(ffi::ThreadPool pool, Array x, Array kernel, Result y, int64_t stride, bool transposed) {
  const int64_t size = kernel.dimensions()[0];
  const int64_t height = y->dimensions()[1], width = y->dimensions()[2], outputs = y->dimensions()[3];
  const Images images(x, size / 2);
  const float *from = x.typed_data(), *weights = kernel.typed_data();
  const auto by = [&](auto form) {
    using Form = decltype(form);
    const bool possible = suits<Form>(images, size, stride, outputs);
    if (possible) winograd<Form>(pool, images, from, weights, y->typed_data(), height, width, outputs, transposed);
    return possible;
  };
  if (!by(FourByFour()) && !by(TwoByTwo()) && !(transposed ? by(StridedBack()) : by(Strided())))
    direct(pool, images, from, weights, y->typed_data(), size, stride, height, width, outputs, transposed);
  return ffi::Error::Success();
}

// --- The gradient by the kernel ------------------------------------------------------------------------------------

// Pixels, or tiles, as an array holds them: from one to the next, and from one vector of their channels to the next.
// at(c + q) is at(c) + at(q) where c begins a vector, or c and c + q lie in one.
struct Steps {
  int64_t pixel, vector;
  int64_t at(int64_t channel) const { return channel / kLanes * vector + channel % kLanes; }
};

// Rows of `width` pixels: where each begins in what is read and in the output's gradient.
struct Rows {
  std::vector<const float*> x, gradient;
  int64_t width, channels, outputs;
  Steps of_x, of_gradient;
};

// kInputs channels from c times kVectors vectors of outputs from d, summed over rows [begin, end), added to `to`.
template <int kInputs, int kVectors>
void accumulate(const Rows& rows, size_t begin, size_t end, int64_t offset, int64_t c, int64_t d, float* to) {
  Vector sum[kInputs][kVectors] = {};
  for (size_t r = begin; r < end; ++r) {
    const float *x = rows.x[r] + offset + rows.of_x.at(c), *g = rows.gradient[r] + rows.of_gradient.at(d);
    for (int64_t j = 0; j < rows.width; ++j, x += rows.of_x.pixel, g += rows.of_gradient.pixel) {
      Vector row[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) row[v] = load(g + v * rows.of_gradient.vector);
#pragma GCC unroll 16
      for (int q = 0; q < kInputs; ++q)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[q][v] += x[rows.of_x.at(q)] * row[v];
    }
  }
  for (int q = 0; q < kInputs; ++q)
    for (int v = 0; v < kVectors; ++v) {
      float* place = to + (c + q) * rows.outputs + d + v * kLanes;
      store(place, load(place) + sum[q][v]);
    }
}

// All channels: kInputs at a time, then 4, and the rest one by one.
template <int kInputs, int kVectors>
void accumulate_channels(const Rows& rows, size_t begin, size_t end, int64_t offset, int64_t d, float* to) {
  int64_t c = 0;
  for (; c + kInputs <= rows.channels; c += kInputs) accumulate<kInputs, kVectors>(rows, begin, end, offset, c, d, to);
  for (; c + 4 <= rows.channels; c += 4) accumulate<4, kVectors>(rows, begin, end, offset, c, d, to);
  for (; c < rows.channels; ++c) accumulate<1, kVectors>(rows, begin, end, offset, c, d, to);
}

// The matrix (channels x outputs) of the tap that reads at `offset`: all channels, all outputs.
void accumulate_all(const Rows& rows, size_t begin, size_t end, int64_t offset, float* to) {
  int64_t d = 0;
  for (; d + 2 * kLanes <= rows.outputs; d += 2 * kLanes)
    accumulate_channels<kWide == 4 ? 8 : 4, 2>(rows, begin, end, offset, d, to);
  for (; d < rows.outputs; d += kLanes)
    accumulate_channels<kWide == 4 ? 16 : 8, 1>(rows, begin, end, offset, d, to);
}

// Every core sums over its own share of the images; the shares are then added in order, so that as many cores always
// round alike. Of how many tiles a share has depends the form, too.
struct Shares {
  int64_t batch, count, entries;
  Floats memory;
  Shares(const ffi::ThreadPool& pool, int64_t batch, int64_t entries)
      : batch(batch), count(how_many(pool, batch)), entries(entries), memory(count * entries) {}
  static int64_t how_many(const ffi::ThreadPool& pool, int64_t batch) {
    return std::min({batch, cores(pool), kMostShares});
  }
  int64_t begin(int64_t share) const { return batch * share / count; }
  float* zeroed(int64_t share) const {
    std::fill_n(&memory[share * entries], entries, 0.f);
    return &memory[share * entries];
  }
  Vector total(int64_t entry) const {
    Vector sum = load(&memory[entry]);
    for (int64_t share = 1; share < count; ++share) sum += load(&memory[share * entries + entry]);
    return sum;
  }
};

// Winograd's form of it: dk = G' [sum over tiles of (B' x B) o (A g A')] G, the sum by one product for each place.
template <typename Form>
void winograd_kernel_gradient(ffi::ThreadPool& pool, const Images& images, const float* from, const float* gradients,
                              float* to, int64_t height, int64_t width, int64_t outputs) {
  static_assert(kSide<Form> == Form::kStride * Form::kOut);  // not so in a form of the gradient by the input
  constexpr int kWeights = Form::kWeights;
  const int64_t together = tiles_together<Form>(images, outputs);
  const int64_t channels = images.channels, matrix = channels * outputs;
  const Shares shares(pool, images.batch, kWeights * kWeights * matrix);
  const Tiles read{images.batch, images.height, images.width, kSide<Form>}, met{images.batch, height, width, Form::kOut};
  const std::vector<float> zeros(Form::kIn * channels);
  in_parallel(pool, shares.count, [&](int64_t share) {
    float* sum = shares.zeroed(share);
    float *spread = scratch(0, channels / kLanes * kBlock<Form>), *others = scratch(1, outputs / kLanes * kBlock<Form>);
    const int64_t end = shares.begin(share + 1) * read.in_one();
    for (int64_t first = shares.begin(share) * read.in_one(); first < end; first += together) {
      const int64_t count = std::min(together, end - first);
      to_blocks<Form, Form::spread_input, Form::kIn, Form::kBefore, Form::kBehind>(
          read, first, count, count, channels, from, zeros.data(), spread);
      to_blocks<Form, Form::spread_gradient, Form::kOut, 0, 0>(met, first, count, count, outputs, gradients, nullptr,
                                                              others);
      const Steps steps{kLanes, kBlock<Form>};
      for (int k = 0; k < kPlaces<Form>; ++k) {
        const int64_t place = k * kPlace<Form>;
        const Rows rows{{spread + place}, {others + place}, count, channels, outputs, steps, steps};
        accumulate_all(rows, 0, 1, 0, sum + weight<Form>(k) * matrix);
      }
    }
  });
  in_parallel(pool, channels, [&](int64_t c) {
    for (int64_t entry = c * outputs; entry < (c + 1) * outputs; entry += kLanes) {
      both_ways<Form::gather_kernel, kWeights, 3>(
          [&](int i, int j) { return shares.total((i * kWeights + j) * matrix + entry); },
          [&](int i, int j, Vector value) { store(to + (i * 3 + j) * matrix + entry, value); });
    }
  });
}

void direct_kernel_gradient(ffi::ThreadPool& pool, const Images& images, const float* from, const float* gradients,
                            float* to, int64_t size, int64_t stride, int64_t height, int64_t width, int64_t outputs) {
  const int64_t channels = images.channels, border = images.border, matrix = channels * outputs;
  const Shares shares(pool, images.batch, size * size * matrix);
  const size_t together = std::max<int64_t>(1, kPixels / width);
  in_parallel(pool, shares.count, [&](int64_t share) {
    float* sum = shares.zeroed(share);
    const int64_t end = shares.begin(share + 1), group = images.group(shares.count);
    for (int64_t first = shares.begin(share); first < end; first += group) {
      const int64_t count = std::min(group, end - first);
      const float* padded = images.padded(from, first, count);
      Rows rows{{}, {}, width, size * channels, outputs, {stride * channels, kLanes}, {outputs, kLanes}};
      for (int64_t n = 0; n < count; ++n)
        for (int64_t i = 0; i < height; ++i) {
          rows.x.push_back(padded + images.at(n, i * stride, 0));
          rows.gradient.push_back(gradients + ((first + n) * height + i) * width * outputs);
        }
      for (size_t r = 0; r < rows.x.size(); r += together)
        for (int64_t i = 0; i < size; ++i) {  // a row of the window lies in order, as all of its taps' channels
          const int64_t offset = (i - border) * images.row() - border * channels;
          accumulate_all(rows, r, std::min(r + together, rows.x.size()), offset, sum + i * size * matrix);
        }
    }
  });
  in_parallel(pool, size * size * channels, [&](int64_t row) {
    for (int64_t entry = row * outputs; entry < (row + 1) * outputs; entry += kLanes)
      store(to + entry, shares.total(entry));
  });
}

// From x (B, H, W, C) and the output's gradient (B, h, w, D) to (k, k, C, D).
ffi::Error KernelGradient(ffi::ThreadPool pool, Array x, Array gradient, Result result, int64_t stride) {
  const int64_t size = result->dimensions()[0];
  const int64_t height = gradient.dimensions()[1], width = gradient.dimensions()[2], outputs = gradient.dimensions()[3];
  const Images images(x, size / 2);
  const float *from = x.typed_data(), *gradients = gradient.typed_data();
  const auto by = [&](auto form) {
    using Form = decltype(form);
    const int64_t tiles = images.batch * height * width / (Form::kOut * Form::kOut);
    const bool enough = Form::kOut == 2 || tiles >= kShareTiles * Shares::how_many(pool, images.batch);
    const bool possible = enough && suits<Form>(images, size, stride, outputs);
    if (possible)
      winograd_kernel_gradient<Form>(pool, images, from, gradients, result->typed_data(), height, width, outputs);
    return possible;
  };
  if (!by(FourByFour()) && !by(TwoByTwo()) && !by(Strided()))
    direct_kernel_gradient(pool, images, from, gradients, result->typed_data(), size, stride, height, width, outputs);
  return ffi::Error::Success();
}

}  // namespace

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
