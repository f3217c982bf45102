/* Included before every file of llama.cpp. GCC 12 tells its optimizer that loading a tile configuration reads 8 bytes:
   it drops the stores of the other 56, and the load faults on a CPU with AMX. Here it reads all 64. */
#pragma once
#if defined(__GNUC__) && !defined(__clang__) && defined(__AMX_TILE__)
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" ::"m"(*(const char(*)[64])(config)))
#endif
