// Rows gathered through a page table; the mutation reads the table as if it counted rows.
#ifndef PAGE
#define PAGE(position, size) ((position) / (size))
#endif

KERNEL gather(const u32* pool, const int* table, u32* out, int page_size, int width) {
  const int position = group();
  const long slot = long(table[PAGE(position, page_size)]) * page_size + position % page_size;
  for (int j = thread(); j < width; j += 64) out[long(position) * width + j] = pool[slot * width + j];
}
