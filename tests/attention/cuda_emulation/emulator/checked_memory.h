// Shared and global memory of the emulated GPU, with what is needed to judge each access.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "emulator.h"

// Shared memory of one block. Accesses are judged per 4-byte word.
class SharedMemory {
 public:
  void reset(uint32_t bytes) {
    bytes_.assign(bytes, 0xff);
    words_.assign((bytes + kWordBytes - 1) / kWordBytes, Word{});
    epoch_ = 1;
  }

  // All threads have met: what they did before is ordered before what follows.
  void barrier() { epoch_++; }

  void read(void* to, uint32_t from, int bytes, int thread) {
    uint8_t* place = locate(from, bytes);
    for (Word* word = first(from); word <= last(from, bytes); word++) {
      if (word->in_flight) emulator::fail("shared memory read before its copy was waited for");
      if (!word->write_epoch) emulator::fail("shared memory read before it was written");
      if (is_race(word->write_epoch, word->writer, thread))
        emulator::fail("race: read after another thread's write without a barrier");
      const bool shared_reads = word->read_epoch == epoch_ && word->reader != thread;
      word->reader = shared_reads ? kManyThreads : thread;
      word->read_epoch = epoch_;
    }
    std::memcpy(to, place, bytes);
  }

  void write(uint32_t to, const void* from, int bytes, int thread) {
    uint8_t* place = claim(to, bytes, thread, false);
    std::memcpy(place, from, bytes);
  }

  // A copy begins: from now on the old bytes are gone and the new ones not there yet.
  void begin_copy(uint32_t to, int bytes, int thread) {
    std::memset(claim(to, bytes, thread, true), 0xff, bytes);
  }

  void land_copy(uint32_t to, const void* from, int bytes, int source_bytes, int thread) {
    for (Word* word = first(to); word <= last(to, bytes); word++) word->in_flight = false;
    uint8_t* place = claim(to, bytes, thread, false);
    std::memset(place, 0, bytes);
    std::memcpy(place, from, source_bytes);
  }

 private:
  static constexpr uint32_t kWordBytes = 4;
  static constexpr int kManyThreads = -2;
  struct Word {
    uint32_t write_epoch = 0, read_epoch = 0;
    int writer = -1, reader = -1;
    bool in_flight = false;
  };

  uint8_t* locate(uint32_t address, int bytes) {
    if (address < emulator::kSharedBase || address - emulator::kSharedBase + bytes > bytes_.size())
      emulator::fail("shared memory access out of bounds");
    if (address % bytes) emulator::fail("misaligned shared memory access");
    return &bytes_[address - emulator::kSharedBase];
  }
  Word* first(uint32_t address) { return &words_[(address - emulator::kSharedBase) / kWordBytes]; }
  Word* last(uint32_t address, int bytes) { return first(address + bytes - 1); }
  bool is_race(uint32_t epoch, int other, int thread) const {
    return epoch == epoch_ && other != thread;
  }
  uint8_t* claim(uint32_t to, int bytes, int thread, bool in_flight) {
    uint8_t* place = locate(to, bytes);
    for (Word* word = first(to); word <= last(to, bytes); word++) {
      if (word->in_flight) emulator::fail("shared memory written while a copy to it is under way");
      if (is_race(word->read_epoch, word->reader, thread))
        emulator::fail("race: write after another thread's read without a barrier");
      if (is_race(word->write_epoch, word->writer, thread))
        emulator::fail("race: write after another thread's write without a barrier");
      word->write_epoch = epoch_;
      word->writer = thread;
      word->in_flight = in_flight;
    }
    return place;
  }

  std::vector<uint8_t> bytes_;
  std::vector<Word> words_;
  uint32_t epoch_ = 1;
};

// The registered pieces of global memory.
class GlobalMemory {
 public:
  void reset(const Region* regions, uint32_t count, uint8_t launch_number) {
    regions_ = regions;
    count_ = count;
    launch_ = launch_number;
  }

  void read(void* to, const void* from, int bytes) const {
    const Region& region = find(from, bytes);
    if (region.kind != kInput) {
      const uint8_t* writer = region.launch_of_byte + (address(from) - region.base);
      for (int i = 0; i < bytes; i++) {
        if (!writer[i]) emulator::fail("workspace read before it was written");
        if (writer[i] == launch_) emulator::fail("workspace read in the launch that writes it");
      }
    }
    std::memcpy(to, from, bytes);
  }

  void write(void* to, const void* from, int bytes) const {
    const Region& region = find(to, bytes);
    if (region.kind == kInput) emulator::fail("global memory write to an input");
    uint8_t* writer = region.launch_of_byte + (address(to) - region.base);
    for (int i = 0; i < bytes; i++) {
      if (writer[i] == launch_) emulator::fail("global memory written twice");
      writer[i] = launch_;
    }
    std::memcpy(to, from, bytes);
  }

 private:
  static const uint8_t* address(const void* p) { return static_cast<const uint8_t*>(p); }
  const Region& find(const void* p, int bytes) const {
    if (reinterpret_cast<uintptr_t>(p) % bytes) emulator::fail("misaligned global memory access");
    for (uint32_t i = 0; i < count_; i++) {
      const Region& region = regions_[i];
      const uint8_t* at = address(p);
      if (at >= region.base && at + bytes <= region.base + region.bytes) return region;
    }
    emulator::fail("global memory access out of bounds");
  }

  const Region* regions_ = nullptr;
  uint32_t count_ = 0;
  uint8_t launch_ = 1;
};
