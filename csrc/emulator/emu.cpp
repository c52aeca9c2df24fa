// Fibers, barriers and shared memory of the emulator.
#include "emu.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace panbench::emu {

dim3 thread_index, block_index, block_size, grid_size;

namespace {

constexpr int kWarp = 32;
constexpr std::size_t kStack = 256 * 1024;

// A meeting of `members` fibers. The round says which meeting; the sum is that of the last one that was complete.
struct Meeting {
  int members = 0, arrived = 0, round = 0, pending = 0, sum = 0;
  void complete_if_all_arrived() {
    if (arrived == 0 || arrived < members) return;
    sum = pending;
    pending = arrived = 0;
    ++round;
  }
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
  const Meeting* at = nullptr;  // where it waits, in which round
  int round = 0;
};

struct SharedArray {
  std::unique_ptr<unsigned char[]> bytes;
  std::size_t size = 0;
};

// What a test may set, and what a launch has at hand. One launch at a time.
struct Machine {
  int order = 0;  // 0 forward, 1 reverse, 2 shuffled
  std::string removed;
  int removed_number = -1;
  std::vector<std::string> barriers;

  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  unsigned current = 0;
  const std::function<void()>* body = nullptr;
  Meeting block;
  std::vector<Meeting> warps;
  std::vector<uint64_t> slots;
  std::vector<SharedArray> shared;
  std::size_t shared_limit = 0;
  std::string failure;
} machine;

void run_fiber() {
  (*machine.body)();
  Fiber& fiber = machine.fibers[machine.current];
  fiber.done = true;
  --machine.block.members;
  machine.block.complete_if_all_arrived();
  Meeting& warp = machine.warps[machine.current / kWarp];
  --warp.members;
  warp.complete_if_all_arrived();
  swapcontext(&fiber.context, &machine.scheduler);
}

int meet(Meeting& meeting, int value) {
  Fiber& fiber = machine.fibers[machine.current];
  fiber.at = &meeting;
  fiber.round = meeting.round;
  meeting.pending += value;
  ++meeting.arrived;
  meeting.complete_if_all_arrived();
  if (fiber.round == meeting.round) swapcontext(&fiber.context, &machine.scheduler);
  return meeting.sum;
}

bool run_block(unsigned threads) {
  machine.block = Meeting{};
  machine.block.members = (int)threads;
  machine.warps.assign((threads + kWarp - 1) / kWarp, Meeting{});
  machine.slots.assign(threads, 0);
  for (SharedArray& array : machine.shared) std::fill_n(array.bytes.get(), array.size, (unsigned char)0xff);
  std::vector<unsigned> order(threads);
  for (unsigned t = 0; t < threads; ++t) {
    order[t] = machine.order == 1 ? threads - 1 - t : t;
    ++machine.warps[t / kWarp].members;
    Fiber& fiber = machine.fibers[t];
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    fiber.done = false;
    fiber.at = nullptr;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
  }
  std::mt19937 generator(1);
  for (unsigned left = threads; left > 0;) {
    if (machine.order == 2) std::shuffle(order.begin(), order.end(), generator);
    bool progress = false;
    for (const unsigned t : order) {
      Fiber& fiber = machine.fibers[t];
      if (fiber.done || (fiber.at && fiber.at->round == fiber.round)) continue;
      fiber.at = nullptr;
      machine.current = t;
      thread_index = dim3(t, 0, 0);
      swapcontext(&machine.scheduler, &fiber.context);
      progress = true;
      if (fiber.done) --left;
    }
    if (!progress) machine.failure = "threads of a block wait for each other at different places";
    if (!machine.failure.empty()) return false;
  }
  return true;
}

}  // namespace

bool launch(dim3 grid, unsigned threads, std::size_t shared_bytes, const std::function<void()>& body) {
  machine.failure.clear();
  machine.body = &body;
  machine.shared.clear();
  machine.shared_limit = shared_bytes;
  if (machine.fibers.size() < threads) machine.fibers.resize(threads);
  grid_size = grid;
  block_size = dim3(threads);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = dim3(x, y, z);
        if (!run_block(threads)) return false;
      }
  return true;
}

int block_barrier(int value) { return meet(machine.block, value); }

int barrier_number(const char* name) {
  const auto found = std::find(machine.barriers.begin(), machine.barriers.end(), name);
  if (found != machine.barriers.end()) return (int)(found - machine.barriers.begin());
  machine.barriers.push_back(name);
  if (machine.removed == name) machine.removed_number = (int)machine.barriers.size() - 1;
  return (int)machine.barriers.size() - 1;
}

void named_barrier(int number) {
  if (number != machine.removed_number) meet(machine.block, 0);
}

void* shared_array(int index, std::size_t bytes) {
  if ((int)machine.shared.size() <= index) machine.shared.resize(index + 1);
  SharedArray& array = machine.shared[index];
  if (array.size == 0) {
    array.size = bytes;
    array.bytes.reset(new unsigned char[bytes]);
    std::fill_n(array.bytes.get(), bytes, (unsigned char)0xff);
    std::size_t total = 0;
    for (const SharedArray& a : machine.shared) total += (a.size + 127) / 128 * 128;
    if (total > machine.shared_limit) machine.failure = "a kernel uses more shared memory than its launch asked for";
  }
  return array.bytes.get();
}

int lane() { return (int)(machine.current % kWarp); }

void warp_barrier() { meet(machine.warps[machine.current / kWarp], 0); }

uint64_t exchange(uint64_t bits, int from) {
  machine.slots[machine.current] = bits;
  warp_barrier();
  const uint64_t out = machine.slots[machine.current / kWarp * kWarp + from];
  warp_barrier();
  return out;
}

extern "C" {

// Order of the fibers (0 forward, 1 reverse, 2 shuffled) and the name of a barrier to leave out, or an empty string.
void pb_emu_configure(int order, const char* removed) {
  machine.order = order;
  machine.removed = removed;
  const auto found = std::find(machine.barriers.begin(), machine.barriers.end(), machine.removed);
  machine.removed_number = found == machine.barriers.end() ? -1 : (int)(found - machine.barriers.begin());
}

// Name of the barrier number `index` of those met so far, or null.
const char* pb_emu_barrier(int index) {
  return index < (int)machine.barriers.size() ? machine.barriers[index].c_str() : nullptr;
}

const char* pb_cuda_error(int) { return machine.failure.c_str(); }

}  // extern "C"

}  // namespace panbench::emu
