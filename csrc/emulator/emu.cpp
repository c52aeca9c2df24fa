// Fibers, barriers and shared memory of the emulator.
#include "emu.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

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
constexpr std::size_t kStack = 64 * 1024;

#if defined(__x86_64__)

// A suspended flow of control: its stack pointer, with the registers that a call must keep on top of that stack.
struct Context {
  void* stack_pointer = nullptr;
};

extern "C" void pb_emu_switch(Context* from, const Context* to);
asm(R"(
.pushsection .text
.globl pb_emu_switch
.type pb_emu_switch, @function
pb_emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq (%rsi), %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.popsection
)");

void switch_context(Context& from, Context& to) { pb_emu_switch(&from, &to); }

// A context that starts in `entry`, which never returns.
void prepare(Context& context, char* stack, void (*entry)()) {
  const auto top = reinterpret_cast<uintptr_t>(stack + kStack) & ~uintptr_t(15);
  void** frame = reinterpret_cast<void**>(top) - 8;  // six registers, the entry, and what it would return to
  std::fill_n(frame, 8, nullptr);
  frame[6] = reinterpret_cast<void*>(entry);
  context.stack_pointer = frame;
}

#else  // slower: every switch is a system call

using Context = ucontext_t;

void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }

void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}

#endif

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
  Context context;
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
  std::vector<bool> met;  // since the last configuration

  std::vector<Fiber> fibers;
  Context scheduler;
  unsigned current = 0;
  const std::function<void()>* body = nullptr;
  Meeting block;
  std::vector<Meeting> warps;
  std::vector<uint64_t> slots;
  std::vector<SharedArray> shared;
  std::size_t shared_asked = 0;
  std::size_t shared_limit = 227 * 1024;
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
  switch_context(fiber.context, machine.scheduler);
}

void rewind(Fiber& fiber) {
  if (!fiber.stack) fiber.stack.reset(new char[kStack]);
  fiber.done = false;
  fiber.at = nullptr;
  prepare(fiber.context, fiber.stack.get(), run_fiber);
}

int meet(Meeting& meeting, int value) {
  Fiber& fiber = machine.fibers[machine.current];
  fiber.at = &meeting;
  fiber.round = meeting.round;
  meeting.pending += value;
  ++meeting.arrived;
  meeting.complete_if_all_arrived();
  if (fiber.round == meeting.round) switch_context(fiber.context, machine.scheduler);
  return meeting.sum;
}

// Runs the fibers of a warp, in the order given, until each of them waits for another warp or is done. Returns how many
// have come to their end, or -1 if none could run.
int run_warp(const std::vector<unsigned>& lanes) {
  int finished = -1;
  for (bool progress = true; progress;) {
    progress = false;
    for (const unsigned t : lanes) {
      Fiber& fiber = machine.fibers[t];
      if (fiber.done || (fiber.at && fiber.at->round == fiber.round)) continue;
      fiber.at = nullptr;
      machine.current = t;
      thread_index = dim3(t, 0, 0);
      switch_context(machine.scheduler, fiber.context);
      progress = true;
      finished = std::max(finished, 0) + (fiber.done ? 1 : 0);
    }
  }
  return finished;
}

// One warp after another runs as far as it can, so that they are as far apart as barriers let them be.
bool run_block(unsigned threads) {
  const unsigned warps = (threads + kWarp - 1) / kWarp;
  machine.block = Meeting{};
  machine.block.members = (int)threads;
  machine.warps.assign(warps, Meeting{});
  machine.slots.assign(threads, 0);
  for (SharedArray& array : machine.shared) std::fill_n(array.bytes.get(), array.size, (unsigned char)0xff);
  std::vector<std::vector<unsigned>> order(warps);
  for (unsigned t = 0; t < threads; ++t) {
    order[t / kWarp].push_back(t);
    ++machine.warps[t / kWarp].members;
    rewind(machine.fibers[t]);
  }
  if (machine.order == 1) {
    std::reverse(order.begin(), order.end());
    for (auto& lanes : order) std::reverse(lanes.begin(), lanes.end());
  }
  std::mt19937 generator(1);
  for (int left = (int)threads; left > 0;) {
    if (machine.order == 2) {
      std::shuffle(order.begin(), order.end(), generator);
      for (auto& lanes : order) std::shuffle(lanes.begin(), lanes.end(), generator);
    }
    bool progress = false;
    for (const auto& lanes : order) {
      const int finished = run_warp(lanes);
      progress |= finished >= 0;
      left -= std::max(finished, 0);
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
  machine.shared_asked = shared_bytes;
  if (shared_bytes > machine.shared_limit) {
    machine.failure = "a launch asks for more shared memory than a block may have";
    return false;
  }
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

std::size_t shared_limit() { return machine.shared_limit; }

int block_barrier(int value) { return meet(machine.block, value); }

int barrier_number(const char* name) {
  const auto found = std::find(machine.barriers.begin(), machine.barriers.end(), name);
  if (found != machine.barriers.end()) return (int)(found - machine.barriers.begin());
  machine.barriers.push_back(name);
  machine.met.push_back(false);
  if (machine.removed == name) machine.removed_number = (int)machine.barriers.size() - 1;
  return (int)machine.barriers.size() - 1;
}

void named_barrier(int number, bool whole_block) {
  machine.met[number] = true;
  if (number == machine.removed_number) return;
  meet(whole_block ? machine.block : machine.warps[machine.current / kWarp], 0);
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
    if (total > machine.shared_asked) machine.failure = "a kernel uses more shared memory than its launch asked for";
  }
  return array.bytes.get();
}

int lane() { return (int)(machine.current % kWarp); }

uint64_t exchange(uint64_t bits, int from) {
  Meeting& warp = machine.warps[machine.current / kWarp];
  machine.slots[machine.current] = bits;
  meet(warp, 0);
  const uint64_t out = machine.slots[machine.current / kWarp * kWarp + from];
  meet(warp, 0);
  return out;
}

unsigned ballot(bool predicate) {
  const unsigned first = machine.current / kWarp * kWarp;
  Meeting& warp = machine.warps[machine.current / kWarp];
  machine.slots[machine.current] = predicate;
  meet(warp, 0);
  unsigned bits = 0;
  for (unsigned t = first; t < first + kWarp && t < machine.slots.size(); ++t)
    if (machine.slots[t] && !machine.fibers[t].done) bits |= 1u << (t - first);
  meet(warp, 0);
  return bits;
}

extern "C" {

// Order of the fibers (0 forward, 1 reverse, 2 shuffled) and the name of a barrier to leave out, or an empty string.
void pb_emu_configure(int order, const char* removed) {
  machine.order = order;
  machine.removed = removed;
  machine.met.assign(machine.met.size(), false);
  const auto found = std::find(machine.barriers.begin(), machine.barriers.end(), machine.removed);
  machine.removed_number = found == machine.barriers.end() ? -1 : (int)(found - machine.barriers.begin());
}

// What a block may have of shared memory.
void pb_emu_shared_limit(int bytes) { machine.shared_limit = (std::size_t)bytes; }

// Name of the barrier number `index`, empty if it was not met since the last configuration; null beyond the last.
const char* pb_emu_barrier(int index) {
  if (index >= (int)machine.barriers.size()) return nullptr;
  return machine.met[index] ? machine.barriers[index].c_str() : "";
}

const char* pb_cuda_error(int) { return machine.failure.c_str(); }

}  // extern "C"

}  // namespace panbench::emu
