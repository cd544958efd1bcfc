// For the VNET_SANITIZE build only: suppresses reports of MindSpore Lite's own leaks.

// Lite unloads its plug-ins while their static objects still own memory, which then looks lost.
extern "C" int dlclose(void*) { return 0; }

// Lite 2.0.0 leaks 8 bytes in this function.
extern "C" const char* __lsan_default_suppressions() { return "leak:CreateLiteRTPluginImpl"; }
extern "C" const char* __lsan_default_options() { return "print_suppressions=0"; }
