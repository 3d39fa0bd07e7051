// A GPU thread block on the host, strict about everything a real GPU leaves undefined.
//
// Every CUDA thread is a fiber. The kernel under test, be it CUDA source compiled for the host or
// PTX translated to C++, calls the functions below for all that is not plain arithmetic. The first
// broken rule ends the run with a message:
//   * shared memory: bounds, alignment, reads of bytes never written, two threads touching the same
//     word without a block barrier in between where one of them writes;
//   * asynchronous copies: they land only when waited for, and nobody may look before;
//   * global memory: bounds and alignment, writes to inputs, bytes written twice, workspace read
//     before an earlier launch wrote it;
//   * warp collectives: all 32 lanes must come to the same one;
//   * block barriers: all threads of the block must come to it, none may have left.
// The order in which warps and lanes run is drawn from a seed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

constexpr int kLanes = 32;
// Not 0, as on a GPU: a kernel that forgets to add its base is caught.
constexpr uint32_t kSharedBase = 1024;

uint32_t thread_index();
uint32_t block_index(int axis);
uint32_t block_size();
uint32_t grid_size(int axis);

void block_barrier();

void read_global(void* to, const void* from, int bytes);
void write_global(void* to, const void* from, int bytes);
void read_shared(void* to, uint32_t from, int bytes);
void write_shared(uint32_t to, const void* from, int bytes);

// cp.async: `bytes` land at `to`, of which all after the first `source_bytes` are zero.
void copy_async(uint32_t to, const void* from, int bytes, int source_bytes);
void commit_copies();
void wait_copies(int pending);

enum class Format { kHalf, kBFloat16 };

// ldmatrix .x1, .x2 or .x4: `count` 8x8 matrices of 16-bit elements.
void load_matrices(uint32_t* fragment, uint32_t row, int count, bool transposed);
// mma m16n8k8 or m16n8k16 (depth): sum += a * b, fp32 accumulation.
void multiply_add(float* sum, const uint32_t* a, const uint32_t* b, int depth, Format format);
uint32_t shuffle_xor(uint32_t value, int lane_mask);
bool any_lane(bool condition);

float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);
float bfloat16_to_float(uint16_t bits);
uint16_t float_to_bfloat16(float value);

[[noreturn]] void fail(const char* message);

}  // namespace emulator

// A kernel: takes the address of its parameters as CUDA lays them out.
using Kernel = void (*)(const void* parameters);

enum RegionKind : int32_t { kInput = 0, kWritten = 1 };

// A piece of global memory that the kernel may touch. `launch_of_byte` is null for an input; else
// it holds for each byte the number of the launch that wrote it, 0 for none.
struct Region {
  uint8_t* base;
  uint64_t bytes;
  int32_t kind;
  uint8_t* launch_of_byte;
};

struct Launch {
  Kernel kernel;
  const void* parameters;
  uint32_t grid[3];
  uint32_t threads;
  uint32_t shared_bytes;
  uint32_t seed;
  uint8_t number;  // 1, 2, ... of the launches that share workspace
  const Region* regions;
  uint32_t num_regions;
};

// What a launch did, for judging its cost.
struct Counters {
  uint64_t matrix_loads;    // ldmatrix, per 8x8 matrix
  uint64_t bank_conflicts;  // extra passes over shared memory that their rows need
};

// Runs all blocks one after the other. Returns 0, or 1 with the first broken rule in `message`.
extern "C" int emulator_launch(const Launch* launch, char* message, size_t message_bytes,
                               Counters* counters);
