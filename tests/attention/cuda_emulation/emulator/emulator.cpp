#include "emulator.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "checked_memory.h"
#include "fiber.h"

namespace {

constexpr uint64_t kMaxSteps = 400'000'000;  // of one launch; a kernel that never ends is caught

enum class State { kReady, kAtBarrier, kInCollective, kDone };
enum class Collective { kMatrices, kMultiply, kShuffle, kVote };

struct Copy {
  uint32_t to;
  const void* from;
  int bytes, source_bytes;
};

struct Thread {
  Fiber fiber;
  State state = State::kReady;
  std::vector<std::vector<Copy>> groups;  // committed, oldest first
  std::vector<Copy> open_group;
  Collective collective{};  // while kInCollective, with the lane's operands on its own stack
  int variant = 0;          // what else must agree between the lanes
  const void* operands = nullptr;
  void* results = nullptr;
};

struct Warp {
  int arrived = 0;
};

// One emulated multiprocessor, running one block at a time.
struct Machine {
  const Launch* launch = nullptr;
  SharedMemory shared;
  GlobalMemory global;
  Fiber scheduler;
  std::unique_ptr<Thread[]> threads;
  uint32_t capacity = 0;
  std::vector<Warp> warps;
  int current = 0;
  uint32_t block[3] = {};
  uint32_t random = 1;
  uint64_t steps = 0;
  Counters counters{};
  bool failed = false;
  std::string message;
};
Machine machine;

Thread& self() { return machine.threads[machine.current]; }

void yield_to_scheduler() { Fiber::switch_to(self().fiber, machine.scheduler); }

void count_step() {
  if (++machine.steps > kMaxSteps) emulator::fail("the kernel does not end");
}

void run_thread() {
  machine.launch->kernel(machine.launch->parameters);
  if (!self().open_group.empty()) emulator::fail("a thread left with uncommitted copies");
  for (const auto& group : self().groups)
    if (!group.empty()) emulator::fail("a thread left with copies under way");
  self().state = State::kDone;
  yield_to_scheduler();
  std::abort();
}

uint32_t draw(uint32_t bound) {
  machine.random = machine.random * 1664525u + 1013904223u;
  return (machine.random >> 8) % bound;
}

// Runs the lanes of a warp until each waits at a block barrier or is done.
void run_warp(int first) {
  const int rotation = draw(emulator::kLanes);
  const int stride = 2 * static_cast<int>(draw(emulator::kLanes / 2)) + 1;
  for (bool any_ran = true; any_ran && !machine.failed;) {
    any_ran = false;
    for (int i = 0; i < emulator::kLanes && !machine.failed; i++) {
      const int thread = first + (i * stride + rotation) % emulator::kLanes;
      if (machine.threads[thread].state != State::kReady) continue;
      any_ran = true;
      machine.current = thread;
      Fiber::switch_to(machine.scheduler, machine.threads[thread].fiber);
    }
  }
  if (machine.failed) return;
  for (int i = first; i < first + emulator::kLanes; i++) {
    if (machine.threads[i].state != State::kInCollective) continue;
    machine.failed = true;
    machine.message = "a warp collective was not reached by all lanes";
    return;
  }
}

void run_block() {
  const int threads = static_cast<int>(machine.launch->threads);
  machine.shared.reset(machine.launch->shared_bytes);
  for (auto& warp : machine.warps) warp = Warp{};
  for (int i = 0; i < threads; i++) {
    Thread& thread = machine.threads[i];
    thread.state = State::kReady;
    thread.groups.clear();
    thread.open_group.clear();
    thread.fiber.prepare(run_thread);
  }
  std::vector<int> order(threads / emulator::kLanes);
  for (;;) {
    for (size_t i = 0; i < order.size(); i++) order[i] = static_cast<int>(i) * emulator::kLanes;
    for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[draw(i)]);
    for (int first : order) {
      run_warp(first);
      if (machine.failed) return;
    }
    int done = 0;
    for (int i = 0; i < threads; i++) done += machine.threads[i].state == State::kDone;
    if (done == threads) return;
    if (done) {
      machine.failed = true;
      machine.message = "a block barrier was not reached by all threads";
      return;
    }
    machine.shared.barrier();
    for (int i = 0; i < threads; i++) machine.threads[i].state = State::kReady;
  }
}

// ---- warp collectives: the last lane to arrive computes for all --------------------------------

struct MatricesOperands {
  uint32_t row;
  int count;
};

struct MultiplyOperands {
  const uint32_t *a, *b;
  int depth;
};

template <typename T>
const T& operands_of(const Thread* lanes, int lane) {
  return *static_cast<const T*>(lanes[lane].operands);
}

// A matrix's eight rows of 16 bytes come in one pass if they lie in different groups of four banks.
void count_passes(const Thread* lanes, int matrix) {
  int rows_in_group[8] = {};
  int passes = 0;
  for (int lane = 8 * matrix; lane < 8 * matrix + 8; lane++) {
    const uint32_t group = operands_of<MatricesOperands>(lanes, lane).row / 16 % 8;
    passes = std::max(passes, ++rows_in_group[group]);
  }
  machine.counters.matrix_loads++;
  machine.counters.bank_conflicts += passes - 1;
}

void compute_matrices(Thread* lanes, int variant) {
  const bool transposed = variant % 2;
  const int count = variant / 2;
  for (int i = 0; i < count; i++) {
    count_passes(lanes, i);
    uint16_t matrix[8][8];
    for (int r = 0; r < 8; r++) {
      const int lane = 8 * i + r;
      machine.shared.read(matrix[r], operands_of<MatricesOperands>(lanes, lane).row, 16,
                          static_cast<int>(&lanes[lane] - &machine.threads[0]));
    }
    for (int lane = 0; lane < emulator::kLanes; lane++) {
      const int r = lane / 4, c = 2 * (lane % 4);
      const uint16_t low = transposed ? matrix[c][r] : matrix[r][c];
      const uint16_t high = transposed ? matrix[c + 1][r] : matrix[r][c + 1];
      static_cast<uint32_t*>(lanes[lane].results)[i] = low | static_cast<uint32_t>(high) << 16;
    }
  }
}

float decode(uint32_t word, int half, emulator::Format format) {
  const auto bits = static_cast<uint16_t>(word >> (16 * half));
  return format == emulator::Format::kHalf ? emulator::half_to_float(bits)
                                           : emulator::bfloat16_to_float(bits);
}

// Fragments as the PTX manual draws them for mma.m16n8k8 and m16n8k16.
void compute_multiply(Thread* lanes, int variant) {
  const auto format = static_cast<emulator::Format>(variant % 2);
  const int depth = variant / 2;
  float a[16][16], b[16][8];
  for (int lane = 0; lane < emulator::kLanes; lane++) {
    const auto& operands = operands_of<MultiplyOperands>(lanes, lane);
    const int group = lane / 4, pair = 2 * (lane % 4);
    for (int half = 0; half < 2; half++)
      for (int k8 = 0; k8 < depth / 8; k8++) {
        const int k = 8 * k8 + pair + half;
        a[group][k] = decode(operands.a[2 * k8], half, format);
        a[group + 8][k] = decode(operands.a[2 * k8 + 1], half, format);
        b[k][group] = decode(operands.b[k8], half, format);
      }
  }
  float sum[16][8] = {};
  for (int row = 0; row < 16; row++)
    for (int k = 0; k < depth; k++)
      for (int column = 0; column < 8; column++) sum[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < emulator::kLanes; lane++) {
    float* result = static_cast<float*>(lanes[lane].results);
    for (int e = 0; e < 4; e++) result[e] += sum[lane / 4 + 8 * (e / 2)][2 * (lane % 4) + e % 2];
  }
}

void compute_shuffle(Thread* lanes, int lane_mask) {
  for (int lane = 0; lane < emulator::kLanes; lane++)
    *static_cast<uint32_t*>(lanes[lane].results) =
        operands_of<uint32_t>(lanes, lane ^ (lane_mask & (emulator::kLanes - 1)));
}

void compute_vote(Thread* lanes) {
  bool any = false;
  for (int lane = 0; lane < emulator::kLanes; lane++) any |= operands_of<bool>(lanes, lane);
  for (int lane = 0; lane < emulator::kLanes; lane++)
    *static_cast<bool*>(lanes[lane].results) = any;
}

void collective(Collective kind, int variant, const void* operands, void* results) {
  count_step();
  Thread& me = self();
  me.collective = kind;
  me.variant = variant;
  me.operands = operands;
  me.results = results;
  const int first = machine.current / emulator::kLanes * emulator::kLanes;
  Warp& warp = machine.warps[machine.current / emulator::kLanes];
  if (++warp.arrived < emulator::kLanes) {
    me.state = State::kInCollective;
    yield_to_scheduler();
    return;
  }
  warp.arrived = 0;
  Thread* lanes = &machine.threads[first];
  for (int i = 0; i < emulator::kLanes; i++)
    if (lanes[i].collective != kind || lanes[i].variant != variant)
      emulator::fail("the lanes of a warp met in different collectives");
  switch (kind) {
    case Collective::kMatrices:
      compute_matrices(lanes, variant);
      break;
    case Collective::kMultiply:
      compute_multiply(lanes, variant);
      break;
    case Collective::kShuffle:
      compute_shuffle(lanes, variant);
      break;
    case Collective::kVote:
      compute_vote(lanes);
      break;
  }
  for (int i = 0; i < emulator::kLanes; i++) lanes[i].state = State::kReady;
}

}  // namespace

namespace emulator {

uint32_t thread_index() { return static_cast<uint32_t>(machine.current); }
uint32_t block_index(int axis) { return machine.block[axis]; }
uint32_t block_size() { return machine.launch->threads; }
uint32_t grid_size(int axis) { return machine.launch->grid[axis]; }

void fail(const char* message) {
  machine.failed = true;
  machine.message = message;
  yield_to_scheduler();
  std::abort();
}

void block_barrier() {
  count_step();
  self().state = State::kAtBarrier;
  yield_to_scheduler();
}

void read_global(void* to, const void* from, int bytes) {
  count_step();
  machine.global.read(to, from, bytes);
}
void write_global(void* to, const void* from, int bytes) {
  count_step();
  machine.global.write(to, from, bytes);
}
void read_shared(void* to, uint32_t from, int bytes) {
  count_step();
  machine.shared.read(to, from, bytes, machine.current);
}
void write_shared(uint32_t to, const void* from, int bytes) {
  count_step();
  machine.shared.write(to, from, bytes, machine.current);
}

void copy_async(uint32_t to, const void* from, int bytes, int source_bytes) {
  count_step();
  if (source_bytes < 0 || source_bytes > bytes) fail("cp.async reads more than it writes");
  uint8_t ignored[16];
  if (source_bytes == bytes)
    machine.global.read(ignored, from, bytes);
  else if (source_bytes)
    fail("cp.async of part of its bytes: not modelled");
  machine.shared.begin_copy(to, bytes, machine.current);
  self().open_group.push_back({to, from, bytes, source_bytes});
}

void commit_copies() {
  self().groups.push_back(std::move(self().open_group));
  self().open_group.clear();
}

void wait_copies(int pending) {
  auto& groups = self().groups;
  while (static_cast<int>(groups.size()) > pending) {
    for (const Copy& copy : groups.front())
      machine.shared.land_copy(copy.to, copy.from, copy.bytes, copy.source_bytes, machine.current);
    groups.erase(groups.begin());
  }
}

void load_matrices(uint32_t* fragment, uint32_t row, int count, bool transposed) {
  const MatricesOperands operands{row, count};
  collective(Collective::kMatrices, 2 * count + transposed, &operands, fragment);
}

void multiply_add(float* sum, const uint32_t* a, const uint32_t* b, int depth, Format format) {
  const MultiplyOperands operands{a, b, depth};
  collective(Collective::kMultiply, 2 * depth + static_cast<int>(format), &operands, sum);
}

uint32_t shuffle_xor(uint32_t value, int lane_mask) {
  uint32_t result;
  collective(Collective::kShuffle, lane_mask, &value, &result);
  return result;
}

bool any_lane(bool condition) {
  bool result;
  collective(Collective::kVote, 0, &condition, &result);
  return result;
}

float half_to_float(uint16_t bits) {
  _Float16 half;
  std::memcpy(&half, &bits, sizeof half);
  return static_cast<float>(half);
}
uint16_t float_to_half(float value) {
  const auto half = static_cast<_Float16>(value);
  uint16_t bits;
  std::memcpy(&bits, &half, sizeof bits);
  return bits;
}
float bfloat16_to_float(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}
uint16_t float_to_bfloat16(float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  if ((word & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((word + 0x7fffu + (word >> 16 & 1u)) >> 16);
}

}  // namespace emulator

int emulator_launch(const Launch* launch, char* message, size_t message_bytes, Counters* counters) {
  if (machine.capacity < launch->threads) {
    machine.threads = std::make_unique<Thread[]>(launch->threads);
    machine.capacity = launch->threads;
  }
  machine.launch = launch;
  machine.global.reset(launch->regions, launch->num_regions, launch->number);
  machine.warps.resize(launch->threads / emulator::kLanes);
  machine.steps = 0;
  machine.counters = {};
  machine.failed = false;
  machine.random = launch->seed * 2654435761u + 12345u;
  uint32_t (&b)[3] = machine.block;
  for (b[2] = 0; b[2] < launch->grid[2] && !machine.failed; b[2]++)
    for (b[1] = 0; b[1] < launch->grid[1] && !machine.failed; b[1]++)
      for (b[0] = 0; b[0] < launch->grid[0] && !machine.failed; b[0]++) run_block();
  *counters = machine.counters;
  std::snprintf(message, message_bytes, "%s", machine.failed ? machine.message.c_str() : "");
  return machine.failed;
}
