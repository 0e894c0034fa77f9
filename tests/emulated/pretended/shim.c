/* Lets torch's CUDA runtime count devices that do not exist, without a driver. Loaded before torch, by LD_PRELOAD.
   The first three names are those of c10::cuda::device_count, device_count_ensure_non_zero and
   hasPrimaryContext(DeviceIndex); the others are what torch looks up in the driver, libcuda.so.1, whose soname this has. */
#include <stdbool.h>

static signed char devices = 0;

void pretend_devices(int count) { devices = (signed char)count; }

signed char _ZN3c104cuda12device_countEv(void) { return devices; }

signed char _ZN3c104cuda28device_count_ensure_non_zeroEv(void) { return devices; }

bool _ZN3c104cuda17hasPrimaryContextEa(signed char device) {
  (void)device;
  return false;
}

int cuDeviceGet(int *device, int ordinal) {
  *device = ordinal;
  return 0;
}

int cuDevicePrimaryCtxGetState(int device, unsigned int *flags, int *active) {
  (void)device;
  *flags = 0;
  *active = 0;
  return 0;
}
