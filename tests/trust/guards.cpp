// The memory of torch's tensors on the CPU, right before a page that may not be touched or after.
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

static const size_t kPage = sysconf(_SC_PAGESIZE);

// A page with the size of the mapping, one that may not be touched, the memory, and another one.
class Guards final : public c10::Allocator {
 public:
  bool at_end = false;

  c10::DataPtr allocate(size_t bytes) override {
    const size_t body = (bytes + kPage - 1) / kPage * kPage, size = body + 3 * kPage;
    void* begin = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char* data = static_cast<char*>(begin) + 2 * kPage;
    TORCH_CHECK(mprotect(begin, kPage, PROT_READ | PROT_WRITE) == 0 &&
                    mprotect(data, body, PROT_READ | PROT_WRITE) == 0,
                "cannot map ", size, " bytes");
    std::memcpy(begin, &size, sizeof size);
    data += at_end ? body - bytes : 0;
    std::memset(data, at_end ? 0x55 : 0xaa, bytes);  // results made of unwritten memory differ
    return {data, data, unmap, c10::kCPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return unmap; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }

 private:
  static void unmap(void* data) {
    const uintptr_t body = reinterpret_cast<uintptr_t>(data) / kPage * kPage;
    void* begin = reinterpret_cast<void*>(body - 2 * kPage);
    munmap(begin, *static_cast<size_t*>(begin));
  }
};

extern "C" void place(bool at_end) {
  static Guards guards;
  guards.at_end = at_end;
  c10::SetCPUAllocator(&guards);
}
