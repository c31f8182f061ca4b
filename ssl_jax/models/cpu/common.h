// What convolution.cc and batch_norm.cc share: registers of floats, and work on all of XLA's threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

// How many floats a register holds, and how many registers wide a sum is at most: 6 x 4 or 6 x 2 sums fit in 32 or 16.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kWide = 4;
#elif defined(__AVX__)
constexpr int kLanes = 8, kWide = 2;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kWide = 4;
#else
constexpr int kLanes = 4, kWide = 2;
#endif
typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef float Anywhere __attribute__((vector_size(4 * kLanes), aligned(4)));  // a vector that may begin at any float

inline Vector load(const float* from) { return *reinterpret_cast<const Anywhere*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Anywhere*>(to) = value; }

constexpr int64_t kLine = 64;  // bytes of a line of the cache

// Stores past the caches: an ordinary store first fetches the line that it overwrites. `to` is a multiple of a line,
// which a vector fills. Whoever stores so calls finish_stores() before another thread may read it.
#if defined(__AVX512F__)
inline void store_past(float* to, Vector value) { _mm512_stream_ps(to, (__m512)value); }
inline void finish_stores() { _mm_sfence(); }
#else
inline void store_past(float* to, Vector value) { store(to, value); }
inline void finish_stores() {}
#endif

// Floats that begin with a line of the cache, so that no vector of them lies in two, which takes twice as long.
class Floats {
 public:
  Floats() = default;
  explicit Floats(int64_t size) { make_room(size); }
  // At least as many; what they held is lost where there were fewer.
  float* make_room(int64_t size) {
    if (size > room_) {
      memory_.reset(), room_ = 0;
      memory_.reset(static_cast<float*>(std::aligned_alloc(kLine, (size * sizeof(float) + kLine - 1) / kLine * kLine)));
      if (!memory_) throw std::bad_alloc();
      room_ = size;
    }
    return memory_.get();
  }
  float* get() const { return memory_.get(); }
  float& operator[](int64_t place) const { return memory_[place]; }

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  std::unique_ptr<float[], Free> memory_;
  int64_t room_ = 0;
};

// --- Work on all cores ---------------------------------------------------------------------------------------------

// work(0), ..., work(items - 1), each once, by this thread and whoever of the pool is free. This thread never waits for
// one that has not begun: all of the pool may stand here, in other convolutions, at the same time.
inline void in_parallel(ffi::ThreadPool& pool, int64_t items, std::function<void(int64_t)> work) {
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

inline int64_t cores(const ffi::ThreadPool& pool) { return std::max<int64_t>(1, pool.num_threads()); }
